//! The table of tool-call formats: one entry per model family. The first whose signs stand in the template wins, so the
//! more specific ones come first.
//!
//! Sources: the families' published chat templates.

use super::format::Begin::{Marker, Start};
use super::format::Piece::{Arguments, Keywords, Name, Object, Parameters, Text};
use super::format::{Description, More, Piece, Tail};

const ARGUMENTS: Piece = Object { name: "name", arguments: "arguments" };
const PARAMETERS: Piece = Object { name: "name", arguments: "parameters" };
const COHERE: Piece = Object { name: "tool_name", arguments: "parameters" };
const NAME: Piece = Name { tail: None };
/// The arguments of Qwen3-Coder and its kin.
const TAGS: Piece = Parameters { open: "<parameter=", key_end: &[">\n"], close: "\n</parameter>\n" };
/// A call as Python writes it.
const PYTHON: &[Piece] = &[NAME, Text("("), Keywords, Text(")")];

/// What an entry leaves out.
const PLAIN: Description = Description {
    name: "",
    signs: &[],
    begin: Start,
    also: &[],
    open: &[],
    call: &[ARGUMENTS],
    more: More::Section,
    close: &[],
    tokens: &[],
};

/// For templates that show tools in no way we know, or not at all: a reply that is a JSON object with name and arguments.
pub(super) static FALLBACK: Description = Description { name: "json", more: More::Separated("; "), ..PLAIN };

pub(super) static FAMILIES: &[Description] = &[
    Description {
        name: "harmony",
        signs: &[&["<|channel|>", "<|message|>", "functions."]],
        begin: Marker("<|channel|>commentary to=functions."),
        also: &[" to=functions."],
        call: &[
            Name {
                tail: Some(Tail {
                    texts: &[" <|constrain|>json", "<|channel|>commentary"],
                    pattern: "",
                    is_required: true,
                }),
            },
            Text("<|message|>"),
            Arguments,
        ],
        tokens: &["<|channel|>", "<|constrain|>", "<|message|>", "<|start|>", "<|end|>"],
        ..PLAIN
    },
    Description {
        name: "kimi-k2",
        signs: &[&["<|tool_calls_section_begin|>"]],
        begin: Marker("<|tool_calls_section_begin|>"),
        call: &[
            Text("<|tool_call_begin|>functions."),
            Name { tail: Some(Tail { texts: &[":"], pattern: "[0-9]{1,3}", is_required: true }) },
            Text("<|tool_call_argument_begin|>"),
            Arguments,
            Text("<|tool_call_end|>"),
        ],
        more: More::Following(""),
        close: &["<|tool_calls_section_end|>"],
        tokens: &[
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_end|>",
            "<|tool_call_begin|>",
            "<|tool_call_argument_begin|>",
            "<|tool_call_end|>",
        ],
        ..PLAIN
    },
    Description {
        name: "deepseek-v3",
        signs: &[&["<｜tool▁calls▁begin｜>", "```json"]],
        begin: Marker("<｜tool▁calls▁begin｜>"),
        call: &[
            Text("<｜tool▁call▁begin｜>function<｜tool▁sep｜>"),
            NAME,
            Text("\n```json\n"),
            Arguments,
            Text("\n```"),
            Text("<｜tool▁call▁end｜>"),
        ],
        more: More::Following("\n"),
        close: &["<｜tool▁calls▁end｜>"],
        tokens: DEEPSEEK_TOKENS,
        ..PLAIN
    },
    Description {
        name: "deepseek-v3.1",
        signs: &[&["<｜tool▁calls▁begin｜>"]],
        begin: Marker("<｜tool▁calls▁begin｜>"),
        call: &[Text("<｜tool▁call▁begin｜>"), NAME, Text("<｜tool▁sep｜>"), Arguments, Text("<｜tool▁call▁end｜>")],
        more: More::Following(""),
        close: &["<｜tool▁calls▁end｜>"],
        tokens: DEEPSEEK_TOKENS,
        ..PLAIN
    },
    Description {
        name: "glm",
        signs: &[&["<tool_call>", "<arg_key>"]],
        begin: Marker("<tool_call>"),
        call: &[NAME, Parameters { open: "<arg_key>", key_end: &["</arg_key>", "<arg_value>"], close: "</arg_value>" }],
        close: &["</tool_call>"],
        tokens: &["<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
        ..PLAIN
    },
    Description {
        name: "qwen3-coder",
        signs: &[&["<tool_call>", "<function=", "<parameter="]],
        begin: Marker("<tool_call>"),
        call: &[Text("\n<function="), NAME, Text(">\n"), TAGS, Text("</function>\n")],
        close: &["</tool_call>"],
        tokens: &["<tool_call>", "</tool_call>"],
        ..PLAIN
    },
    Description {
        name: "seed-oss",
        signs: &[&["<seed:tool_call>", "<function="]],
        begin: Marker("<seed:tool_call>"),
        call: &[
            Text("\n<function="),
            NAME,
            Text(">\n"),
            Parameters { open: "<parameter=", key_end: &[">"], close: "</parameter>\n" },
            Text("</function>\n"),
        ],
        close: &["</seed:tool_call>"],
        tokens: &["<seed:tool_call>", "</seed:tool_call>"],
        ..PLAIN
    },
    Description {
        name: "functionary-v3.1",
        signs: &[&["<function=", "</function>"]],
        begin: Marker("<function="),
        call: &[NAME, Text(">"), Arguments],
        close: &["</function>"],
        ..PLAIN
    },
    Description {
        name: "hermes",
        signs: &[&["<tool_call>"]],
        begin: Marker("<tool_call>"),
        call: &[Text("\n"), ARGUMENTS, Text("\n")],
        close: &["</tool_call>"],
        tokens: &["<tool_call>", "</tool_call>"],
        ..PLAIN
    },
    Description {
        name: "mistral-args",
        signs: &[&["[TOOL_CALLS]", "[ARGS]"]],
        begin: Marker("[TOOL_CALLS]"),
        call: &[
            Name { tail: Some(Tail { texts: &["[CALL_ID]"], pattern: "[a-zA-Z0-9]{9}", is_required: false }) },
            Text("[ARGS]"),
            Arguments,
        ],
        tokens: &["[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"],
        ..PLAIN
    },
    Description {
        name: "mistral",
        signs: &[&["[TOOL_CALLS]"]],
        begin: Marker("[TOOL_CALLS]"),
        open: &["["],
        more: More::Separated(", "),
        close: &["]"],
        tokens: &["[TOOL_CALLS]"],
        ..PLAIN
    },
    Description {
        name: "granite",
        signs: &[&["<|tool_call|>"]],
        begin: Marker("<|tool_call|>"),
        also: &["<tool_call>"],
        open: &["["],
        more: More::Separated(", "),
        close: &["]"],
        tokens: &["<|tool_call|>"],
        ..PLAIN
    },
    Description {
        name: "granite-20b",
        signs: &[&["<function_call>"]],
        begin: Marker("<function_call>"),
        call: &[Text(" "), ARGUMENTS],
        tokens: &["<function_call>"],
        ..PLAIN
    },
    Description {
        name: "firefunction-v1",
        signs: &[&["<functioncall>"]],
        begin: Marker("<functioncall>"),
        tokens: &["<functioncall>"],
        ..PLAIN
    },
    Description {
        name: "functools",
        signs: &[&["functools["]],
        begin: Marker("functools"),
        open: &["["],
        more: More::Separated(", "),
        close: &["]"],
        ..PLAIN
    },
    Description {
        name: "nemotron",
        signs: &[&["<TOOLCALL>"]],
        begin: Marker("<TOOLCALL>"),
        open: &["["],
        more: More::Separated(", "),
        close: &["]", "</TOOLCALL>"],
        tokens: &["<TOOLCALL>", "</TOOLCALL>"],
        ..PLAIN
    },
    Description {
        name: "minimax-m1",
        signs: &[&["<tool_calls>\\n{\"name\""]],
        begin: Marker("<tool_calls>"),
        call: &[Text("\n"), ARGUMENTS, Text("\n")],
        more: More::Following(""),
        close: &["</tool_calls>"],
        tokens: &["<tool_calls>", "</tool_calls>"],
        ..PLAIN
    },
    Description {
        name: "jamba",
        signs: &[&["<tool_calls>"]],
        begin: Marker("<tool_calls>"),
        open: &["["],
        more: More::Separated(", "),
        close: &["]", "</tool_calls>"],
        tokens: &["<tool_calls>", "</tool_calls>"],
        ..PLAIN
    },
    Description {
        name: "command-r7b",
        signs: &[&["<|START_ACTION|>"]],
        begin: Marker("<|START_ACTION|>"),
        open: &["["],
        call: &[COHERE],
        more: More::Separated(", "),
        close: &["]", "<|END_ACTION|>"],
        tokens: &["<|START_ACTION|>", "<|END_ACTION|>"],
        ..PLAIN
    },
    Description {
        name: "command-r",
        signs: &[&["Action:", "tool_name"]],
        begin: Marker("Action:"),
        open: &[" ```json\n", "["],
        call: &[COHERE],
        more: More::Separated(", "),
        close: &["]", "```"],
        ..PLAIN
    },
    Description {
        name: "internlm2",
        signs: &[&["<|action_start|><|plugin|>"]],
        begin: Marker("<|action_start|><|plugin|>"),
        call: &[Text("\n"), PARAMETERS],
        close: &["<|action_end|>"],
        tokens: &["<|action_start|>", "<|plugin|>", "<|action_end|>"],
        ..PLAIN
    },
    Description {
        name: "minicpm3",
        signs: &[&["<|tool_call_start|>", "```python"]],
        begin: Marker("<|tool_call_start|>"),
        open: &["\n```python\n"],
        call: PYTHON,
        more: More::Separated("\n"),
        close: &["\n```\n", "<|tool_call_end|>"],
        tokens: &["<|tool_call_start|>", "<|tool_call_end|>"],
        ..PLAIN
    },
    Description {
        name: "lfm2",
        signs: &[&["<|tool_call_start|>"], &["<|tool_list_start|>"]],
        begin: Marker("<|tool_call_start|>"),
        open: &["["],
        call: PYTHON,
        more: More::Separated(", "),
        close: &["]", "<|tool_call_end|>"],
        tokens: &["<|tool_call_start|>", "<|tool_call_end|>"],
        ..PLAIN
    },
    Description {
        name: "olmo3",
        signs: &[&["<function_calls>"]],
        begin: Marker("<function_calls>"),
        call: PYTHON,
        more: More::Separated("\n"),
        close: &["</function_calls>"],
        tokens: &["<function_calls>", "</function_calls>"],
        ..PLAIN
    },
    Description {
        name: "pythonic",
        signs: &[&["[func_name1("]],
        open: &["["],
        call: PYTHON,
        more: More::Separated(", "),
        close: &["]"],
        ..PLAIN
    },
    Description {
        name: "llama3",
        signs: &[
            &["\"parameters\": dictionary of argument name"],
            &["\"name\": function name, \"parameters\""],
            &["<|python_tag|>"],
        ],
        also: &["<|python_tag|>"],
        call: &[PARAMETERS],
        more: More::Separated("; "),
        tokens: &["<|python_tag|>"],
        ..PLAIN
    },
    Description {
        name: "xlam",
        signs: &[&["[{\"name\": \"tool_call_name\""], &["\"name\": \"func_name1\", \"arguments\""]],
        open: &["["],
        more: More::Separated(", "),
        close: &["]"],
        ..PLAIN
    },
];

const DEEPSEEK_TOKENS: &[&str] = &[
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁sep｜>",
];
