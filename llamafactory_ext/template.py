"""Template ``chatts``: ChatML with the mm-plugin of that name. Public registry of ``llamafactory.data.template``."""

from types import ModuleType


def install(upstream: ModuleType) -> str | None:
    """Registers the template, unless one of that name is there (the fork has its own)."""
    if "chatts" in upstream.TEMPLATES:
        return None
    string, function, tool = upstream.StringFormatter, upstream.FunctionFormatter, upstream.ToolFormatter
    upstream.register_template(
        name="chatts",
        format_user=string(slots=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]),
        format_assistant=string(slots=["{{content}}<|im_end|>\n"]),
        format_system=string(slots=["<|im_start|>system\n{{content}}<|im_end|>\n"]),
        format_function=function(slots=["{{content}}<|im_end|>\n"], tool_format="qwen"),
        format_observation=string(
            slots=[
                "<|im_start|>user\n<tool_response>\n{{content}}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
            ]
        ),
        format_tools=tool(tool_format="qwen"),
        default_system="You are a helpful assistant.",
        stop_words=["<|im_end|>"],
        replace_eos=True,
        mm_plugin=upstream.get_mm_plugin("chatts"),
    )
    return "registered"
