"""What people start themselves: data and recipes before a run, scores after it. The plugin never imports it."""
