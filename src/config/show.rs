//! Prints the effective configuration as TOML that loads again, references as references and secrets hidden.

use ::config::{Value, ValueKind};

use super::key::{Form, Key, Kind};
use super::secret::{HIDDEN, Reference};
use super::tree::Table;
use super::{kafka, postgres};

/// Prints a tree that was found valid, in the order of its description.
pub(super) fn print(tree: &Value, keys: &[Key]) -> String {
    let mut text = String::new();
    if let ValueKind::Table(table) = &tree.kind {
        print_table(&mut text, "", table, keys);
    }
    text.trim_start().to_owned()
}

fn print_table(text: &mut String, path: &str, table: &Table, keys: &[Key]) {
    let written = || keys.iter().filter_map(|key| Some((key, table.get(key.name)?)));
    for (key, value) in written() {
        if let Kind::Value(form, _) = key.kind {
            print_value(text, key.name, value, form);
        }
    }
    for (key, value) in written() {
        let path = match path {
            "" => key.name.to_owned(),
            _ => format!("{path}.{}", key.name),
        };
        print_below(text, &path, value, key.kind);
    }
}

/// Prints what has a header of its own, and so has to come after the plain values.
fn print_below(text: &mut String, path: &str, value: &Value, kind: Kind) {
    let mut body = String::new();
    match (kind, &value.kind) {
        (Kind::Table(keys) | Kind::OptionalTable(keys), ValueKind::Table(table)) => {
            print_table(&mut body, path, table, keys);
        }
        (Kind::Entries(form), ValueKind::Table(table)) => {
            print_entries(&mut body, table, form);
        }
        (Kind::Tables(keys), ValueKind::Array(items)) => {
            for item in items {
                if let ValueKind::Table(table) = &item.kind {
                    text.extend(["\n[[", path, "]]\n"]);
                    print_table(text, path, table, keys);
                }
            }
        }
        _ => (),
    }
    if !body.is_empty() {
        text.extend(["\n[", path, "]\n", &body]);
    }
}

fn print_entries(text: &mut String, table: &Table, form: Form) {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| *name);
    for (name, value) in entries {
        print_value(text, name, value, form);
    }
}

fn print_value(text: &mut String, name: &str, value: &Value, form: Form) {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let is_bare = !name.is_empty() && name.bytes().all(bare);
    let quoted = if is_bare { name.to_owned() } else { key(name) };
    text.extend([&quoted, " = ", &printed(name, value, form), "\n"]);
}

fn printed(name: &str, value: &Value, form: Form) -> String {
    match Reference::of(value) {
        Some(Reference::Variable(variable)) => return format!("{{ env = {} }}", string(variable)),
        Some(Reference::File(path)) => return format!("{{ file = {} }}", string(path)),
        None => (),
    }
    match (&value.kind, form) {
        (_, Form::Secret(_)) => string(HIDDEN),
        (_, Form::Property) if kafka::is_secret(name) => string(HIDDEN),
        (ValueKind::String(text), Form::Url) => string(&postgres::shown(text)),
        // The environment knows texts only; a number of it may begin with zeros, one of TOML may not.
        (ValueKind::String(text), Form::Integer { .. }) => {
            text.parse::<i64>().map_or_else(|_| text.clone(), |number| number.to_string())
        }
        (ValueKind::String(text), Form::Boolean) => text.clone(),
        (ValueKind::String(text), _) => string(text),
        (ValueKind::Table(table), Form::WordOr(_, inner)) => {
            let text = table.get(inner).map(|value| printed(inner, value, Form::Text("")));
            format!("{{ {inner} = {} }}", text.unwrap_or_default())
        }
        (ValueKind::Array(items), _) => {
            let items: Vec<_> = items.iter().map(|item| printed(name, item, form)).collect();
            format!("[{}]", items.join(", "))
        }
        (scalar, _) => scalar.to_string(),
    }
}

/// A name in quotes; none holds a control character. What is printed for a value may be of a form that no name can have.
fn key(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

fn string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    #[test]
    fn what_is_secret_is_hidden() {
        let text = r#"
            postgres.url = "postgres://u:hunter2@db/shop"
            kafka.brokers = "k1"
            kafka.properties = { "sasl.password" = "hunter2", "linger.ms" = 5 }
            http.token = "hunter2"
        "#;
        let shown = super::super::show(text, &BTreeMap::new()).unwrap();
        assert!(!shown.contains("hunter2"), "{shown}");
        for line in [
            "url = \"postgres://u:***@db/shop?sslmode=verify-full\"",
            "\"sasl.password\" = \"***\"",
            "\"linger.ms\" = 5",
            "token = \"***\"",
        ] {
            assert!(shown.contains(line), "{line}\n{shown}");
        }
    }
}
