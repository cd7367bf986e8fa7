//! Texts with fields of an event in them, such as `outbox.event.{aggregate_type}`. Pure.

use super::problem::{Fault, listed, nearest, quoted};

/// A text with fields. `{{` and `}}` stand for the braces themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// In order; no two literals stand side by side, and none is empty.
    pub parts: Vec<Part>,
}

/// A piece of a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Goes into the result as it is.
    Literal(String),
    /// Is filled from the event.
    Field(Field),
}

/// What of an event a template can name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Field {
    /// `{aggregate_type}`
    AggregateType,
    /// `{aggregate_id}`
    AggregateId,
    /// `{event_type}`
    EventType,
    /// `{event_id}`
    EventId,
    /// `{sequence}`, which a stream need not have.
    Sequence,
    /// `{headers.NAME}`, which an event need not have.
    Header(String),
}

/// Why a text is not a [`Template`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The name between the braces is none of an event's fields.
    #[error("no field of an event is called `{0}`")]
    UnknownField(String),
    /// A `{` without its `}`.
    #[error("`{{` without `}}`")]
    Unclosed,
    /// A `}` without its `{`.
    #[error("`}}` without `{{`")]
    Unopened,
}

const FIELDS: [(&str, Field); 5] = [
    ("aggregate_type", Field::AggregateType),
    ("aggregate_id", Field::AggregateId),
    ("event_type", Field::EventType),
    ("event_id", Field::EventId),
    ("sequence", Field::Sequence),
];

/// How the field of a header begins; its name follows.
const HEADER: &str = "headers.";

impl Template {
    /// Reads the form of the configuration.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut template = Self { parts: Vec::new() };
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (literal, tail) = rest.split_at(at);
            template.push_literal(literal);
            rest = template.push_brace(tail)?;
        }
        template.push_literal(rest);
        Ok(template)
    }

    /// Takes a brace and what belongs to it, and gives back the rest.
    fn push_brace<'a>(&mut self, tail: &'a str) -> Result<&'a str, TemplateError> {
        for (escape, brace) in [("{{", "{"), ("}}", "}")] {
            if let Some(rest) = tail.strip_prefix(escape) {
                self.push_literal(brace);
                return Ok(rest);
            }
        }
        let inside = tail.strip_prefix('{').ok_or(TemplateError::Unopened)?;
        let (name, rest) = inside.split_once('}').ok_or(TemplateError::Unclosed)?;
        self.parts.push(Part::Field(Field::parse(name)?));
        Ok(rest)
    }

    fn push_literal(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some(Part::Literal(literal)) => literal.push_str(text),
            Some(Part::Field(_)) | None => self.parts.push(Part::Literal(text.to_owned())),
        }
    }

    /// Whether it is the empty text.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// What stands before the first field; empty if a field comes first.
    pub fn literal_prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(literal)) => literal,
            Some(Part::Field(_)) | None => "",
        }
    }

    /// The whole text, if no event changes it.
    pub fn as_literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(literal)] => Some(literal),
            _ => None,
        }
    }
}

impl Field {
    fn parse(name: &str) -> Result<Self, TemplateError> {
        if let Some(header) = name.strip_prefix(HEADER).filter(|header| !header.is_empty()) {
            return Ok(Self::Header(header.to_owned()));
        }
        FIELDS
            .into_iter()
            .find(|(known, _)| *known == name)
            .map(|(_, field)| field)
            .ok_or_else(|| TemplateError::UnknownField(name.to_owned()))
    }
}

impl From<TemplateError> for Fault {
    fn from(error: TemplateError) -> Self {
        match error {
            TemplateError::UnknownField(name) => {
                let known = || FIELDS.iter().map(|(known, _)| *known).chain(["headers.NAME"]);
                let near = nearest(&name, known());
                Self {
                    hint: near.map(|near| format!("did you mean `{{{near}}}`?")),
                    ..Self::part(
                        format!("an unknown field {}", quoted(&format!("{{{name}}}"))),
                        format!("one of {}", listed(known())),
                    )
                }
            }
            TemplateError::Unclosed => Self::new("a `}` for each `{`").hint("a literal brace is written `{{`"),
            TemplateError::Unopened => Self::new("a `{` for each `}`").hint("a literal brace is written `}}`"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn literal(text: &str) -> Part {
        Part::Literal(text.to_owned())
    }

    #[test]
    fn fields_and_braces_are_told_apart() {
        let field = Part::Field;
        let cases = [
            ("", vec![]),
            ("a", vec![literal("a")]),
            ("{aggregate_id}", vec![field(Field::AggregateId)]),
            ("outbox.event.{aggregate_type}", vec![literal("outbox.event."), field(Field::AggregateType)]),
            ("a{{b}}c", vec![literal("a{b}c")]),
            ("{{{sequence}}}", vec![literal("{"), field(Field::Sequence), literal("}")]),
            (
                "{event_id}{headers.tenant.id}",
                vec![field(Field::EventId), field(Field::Header("tenant.id".to_owned()))],
            ),
        ];
        for (text, parts) in cases {
            assert_eq!(Template::parse(text), Ok(Template { parts }), "{text}");
        }
    }

    #[test]
    fn what_is_no_template_says_why() {
        let unknown = |name: &str| TemplateError::UnknownField(name.to_owned());
        let cases = [
            ("{", TemplateError::Unclosed),
            ("a{event_id", TemplateError::Unclosed),
            ("a}b", TemplateError::Unopened),
            ("{}", unknown("")),
            ("{headers.}", unknown("headers.")),
            ("{agregate_type}", unknown("agregate_type")),
        ];
        for (text, error) in cases {
            assert_eq!(Template::parse(text), Err(error), "{text}");
        }
        let fault = Fault::from(unknown("agregate_type"));
        assert_eq!(fault.hint.as_deref(), Some("did you mean `{aggregate_type}`?"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_but_never_panics(text in "[{}a-c_.é]{0,12}") {
            if let Ok(template) = Template::parse(&text) {
                prop_assert!(template.parts.iter().all(|part| *part != literal("")));
            }
        }

        #[test]
        fn a_text_with_doubled_braces_comes_back(text in "\\PC{0,20}") {
            let escaped = text.replace('{', "{{").replace('}', "}}");
            let template = Template::parse(&escaped).unwrap();
            prop_assert_eq!(template.as_literal(), Some(text.as_str()));
        }
    }
}
