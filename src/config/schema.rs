//! The JSON Schema of the file, for editors. It tells shapes and words; relations between keys are told by
//! loading the file.

use serde_json::{Map, Value, json};

use super::key::{Fallback, Form, Key, Kind};

/// Describes the whole file. No key is required: each may come from the environment.
pub(super) fn of(keys: &[Key]) -> Value {
    let mut schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "outboxd.toml",
        "$defs": { "reference": reference() },
    });
    merge(&mut schema, table(keys));
    schema
}

/// A string that is kept elsewhere.
fn reference() -> Value {
    let one = |name: &str, doc: &str| {
        json!({
            "type": "object",
            "properties": { name: { "type": "string", "description": doc } },
            "required": [name],
            "additionalProperties": false,
        })
    };
    json!({ "oneOf": [
        one("env", "The name of an environment variable."),
        one("file", "The path of a file; one line break at its end is not part of the value."),
    ] })
}

fn table(keys: &[Key]) -> Value {
    let properties: Map<String, Value> = keys.iter().map(|key| (key.name.to_owned(), described(key))).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn described(key: &Key) -> Value {
    let mut schema = json!({ "description": key.doc });
    let shape = match key.kind {
        Kind::Value(form, _) => value(form),
        Kind::Table(keys) | Kind::OptionalTable(keys) => table(keys),
        Kind::Tables(keys) => json!({ "type": "array", "items": table(keys) }),
        Kind::Entries(form) => json!({ "type": "object", "additionalProperties": value(form) }),
    };
    merge(&mut schema, shape);
    let default = match key.kind {
        Kind::Value(_, Fallback::Text(text)) => json!({ "default": text }),
        Kind::Value(_, Fallback::Integer(number)) => json!({ "default": number }),
        Kind::Value(_, Fallback::Boolean(truth)) => json!({ "default": truth }),
        _ => json!({}),
    };
    merge(&mut schema, default);
    schema
}

fn value(form: Form) -> Value {
    let or_reference = |shape: Value| json!({ "anyOf": [shape, { "$ref": "#/$defs/reference" }] });
    match form {
        Form::Text(_) | Form::Secret(_) | Form::Url | Form::Duration { .. } | Form::Size { .. } => {
            or_reference(json!({ "type": "string" }))
        }
        Form::Property => or_reference(json!({ "type": ["string", "integer", "boolean"] })),
        Form::WordOr(words, name) => {
            let named = json!({ "type": "object", "properties": { name: or_reference(json!({ "type": "string" })) },
                                "required": [name], "additionalProperties": false });
            json!({ "anyOf": [value(Form::Word(words)), named] })
        }
        Form::Word(words) => or_reference(json!({ "enum": words })),
        Form::Texts(what) => {
            let one = value(Form::Text(what));
            json!({ "anyOf": [one, { "type": "array", "items": one }] })
        }
        Form::Integer { least, most } => {
            json!({ "type": "integer", "minimum": least, "maximum": most })
        }
        Form::Boolean => json!({ "type": "boolean" }),
    }
}

fn merge(schema: &mut Value, more: Value) {
    if let (Value::Object(schema), Value::Object(more)) = (schema, more) {
        schema.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::super::schema;

    #[test]
    fn the_schema_knows_the_defaults_and_nothing_else() {
        let schema = schema();
        let at = |path: &str| schema.pointer(path).cloned().unwrap_or_default();
        assert_eq!(at("/additionalProperties"), false);
        let lease = at("/properties/relay/properties/lease");
        assert_eq!(lease["default"], "10s");
        let route = at("/properties/outbox/items/properties/route/items/properties");
        let policy = &route["on_reject"]["anyOf"];
        assert_eq!(policy[0]["anyOf"][0]["enum"], serde_json::json!(["park", "halt"]));
        assert_eq!(policy[1]["required"], serde_json::json!(["dead_letter"]));
        assert!(route["headers"]["additionalProperties"].is_object());
    }
}
