"""Labels and series of any form brought to GDSH's layout, and back to the tools that people correct labels in.

``sources`` reads tables (pandas), ``times`` places labels on a series' own axis, ``labels``, ``label_studio`` and
``answers`` read what tools and public data sets write, ``finding`` says which of them it is, ``layout`` writes and
reads ``json/`` and ``timeseries/``, ``back`` writes pre-labels.
"""
