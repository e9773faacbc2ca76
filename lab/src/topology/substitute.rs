//! Environment variables in a topology file, expanded before the YAML is parsed, as containerlab does:
//! `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME-default}` (and `:=`, `=` with the same meaning),
//! `${NAME:+other}`, `${NAME+other}`. A variable that is not set and has no default stays as it is written.

/// Expands `text` with the variables that `lookup` knows. Line numbers are kept as long as no value has a line break.
pub(super) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let (used, value) = reference(rest, lookup);
        out.push_str(&value);
        rest = &rest[used..];
    }
    out.push_str(rest);
    out
}

/// Reads the reference at the start of `text` (a `$`): how many bytes it takes and what stands for it.
fn reference(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> (usize, String) {
    let after = &text[1..];
    if let Some(inner) = after.strip_prefix('{') {
        let name_length = name_length(inner);
        let Some(end) = closing(inner).filter(|_| name_length > 0) else { return (1, "$".to_owned()) };
        let written = &text[..end + 3];
        let (name, operation) = (&inner[..name_length], &inner[name_length..end]);
        let value = operate(lookup(name), operation, lookup).unwrap_or_else(|| written.to_owned());
        return (written.len(), value);
    }
    let length = name_length(after);
    if length == 0 {
        return (1, "$".to_owned());
    }
    let written = &text[..=length];
    (written.len(), lookup(&after[..length]).unwrap_or_else(|| written.to_owned()))
}

fn operate(
    value: Option<String>,
    operation: &str,
    lookup: &dyn Fn(&str) -> Option<String>,
) -> Option<String> {
    let filled = value.clone().filter(|v| !v.is_empty());
    let word = |text: &str| expand(text, lookup);
    if operation.is_empty() {
        value
    } else if let Some(default) = operation.strip_prefix(":-").or_else(|| operation.strip_prefix(":=")) {
        Some(filled.unwrap_or_else(|| word(default)))
    } else if let Some(other) = operation.strip_prefix(":+") {
        Some(filled.map(|_| word(other)).unwrap_or_default())
    } else if let Some(default) = operation.strip_prefix('-').or_else(|| operation.strip_prefix('=')) {
        Some(value.unwrap_or_else(|| word(default)))
    } else {
        operation.strip_prefix('+').map(|other| value.map(|_| word(other)).unwrap_or_default())
    }
}

/// The offset of the brace that closes a reference whose opening one was just read.
fn closing(text: &str) -> Option<usize> {
    let mut depth = 1_u32;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            '\n' => return None,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

/// The length of the variable name at the start of `text`, zero when there is none.
fn name_length(text: &str) -> usize {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return 0;
    }
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::expand;

    fn with_env(text: &str) -> String {
        expand(text, &|name| match name {
            "SET" => Some("value".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn forms_expand_as_containerlab_does() {
        for (written, meant) in [
            ("$SET/x", "value/x"),
            ("${SET}x", "valuex"),
            ("${NOT:-d}", "d"),
            ("${NOT:=../a/b}", "../a/b"),
            ("${EMPTY:=d}", "d"),
            ("${EMPTY=d}", ""),
            ("${SET:+other}", "other"),
            ("${NOT+other}", ""),
            ("${NOT:=${SET}}", "value"),
            ("$NOT ${NOT}", "$NOT ${NOT}"),
            ("a $(cat x) $1 $$ ${", "a $(cat x) $1 $$ ${"),
        ] {
            assert_eq!(with_env(written), meant, "{written}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_expands_without_panic(text in ".{0,80}") {
            let _ = with_env(&text);
        }
    }
}
