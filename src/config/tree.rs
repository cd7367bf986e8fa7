//! File and environment as one tree in which every value knows where it comes from. Nothing is judged here
//! but the syntax of the file and the names of the variables.

use std::collections::BTreeMap;

use ::config::{Config, ConfigError, Map, Source, Value, ValueKind};
use toml::de::{DeTable, DeValue};

use super::key::{self, Fallback, Key, Kind};
use super::problem::{Problem, nearest};

/// A table of the tree.
pub(super) type Table = Map<String, Value>;

/// What an environment variable that sets a key begins with.
const PREFIX: &str = "OUTBOXD__";

/// Where a value was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin<'a> {
    /// A line of the file, from 1.
    Line(usize),
    /// An environment variable.
    Variable(&'a str),
    /// Nowhere: it is a default.
    Default,
}

impl<'a> Origin<'a> {
    /// Reads what [`read`] left with the value: the digits of a line or the name of a variable.
    pub(super) fn of(value: &'a Value) -> Self {
        match value.origin() {
            None => Self::Default,
            Some(text) => text.parse().map_or(Self::Variable(text), Self::Line),
        }
    }

    /// The line, for a finding.
    pub(super) fn line(self) -> Option<usize> {
        match self {
            Self::Line(line) => Some(line),
            Self::Variable(_) | Self::Default => None,
        }
    }
}

/// Layers the environment over the file, and both over the defaults.
///
/// The findings beside the tree are of variables that reach no key. Without a tree, they are of the syntax:
/// what a broken file means is not worth guessing.
pub(super) fn read(
    text: &str,
    variables: &BTreeMap<String, String>,
    keys: &[Key],
) -> Result<(Value, Vec<Problem>), Vec<Problem>> {
    let file = Written::parse(text)?;
    let (overrides, problems) = overrides(variables, keys);
    let mut tree = layer(file, overrides).map_err(|error| {
        vec![Problem {
            line: None,
            key: String::new(),
            found: None,
            expected: format!("file and environment to fit together: {error}"),
            hint: None,
        }]
    })?;
    fill(&mut tree, keys);
    Ok((tree, problems))
}

/// Adds the defaults of what is not written. What has the wrong shape stays as it is, to be found later.
fn fill(value: &mut Value, keys: &[Key]) {
    let ValueKind::Table(table) = &mut value.kind else {
        return;
    };
    for key in keys {
        match default_of(key.kind) {
            Some(default) => fill_below(table.entry(key.name.to_owned()).or_insert(default), key),
            None => {
                if let Some(written) = table.get_mut(key.name) {
                    fill_below(written, key);
                }
            }
        }
    }
}

fn fill_below(value: &mut Value, key: &Key) {
    match (key.kind, &mut value.kind) {
        (Kind::Table(keys) | Kind::OptionalTable(keys), _) => fill(value, keys),
        (Kind::Tables(keys), ValueKind::Array(items)) => {
            if items.is_empty() {
                items.push(Value::new(None, Table::new()));
            }
            for item in items {
                fill(item, keys);
            }
        }
        (Kind::Tables(_) | Kind::Value(..) | Kind::Entries(_), _) => (),
    }
}

fn default_of(kind: Kind) -> Option<Value> {
    let kind = match kind {
        Kind::Value(_, Fallback::Text(text)) => ValueKind::from(text),
        Kind::Value(_, Fallback::Integer(number)) => ValueKind::I64(number),
        Kind::Value(_, Fallback::Boolean(truth)) => ValueKind::Boolean(truth),
        Kind::Value(_, Fallback::Required | Fallback::Absent) | Kind::OptionalTable(_) => {
            return None;
        }
        Kind::Table(_) | Kind::Entries(_) => ValueKind::Table(Table::new()),
        Kind::Tables(_) => ValueKind::Array(Vec::new()),
    };
    Some(Value::new(None, kind))
}

fn layer(file: Written, overrides: Vec<(String, Value)>) -> Result<Value, ConfigError> {
    let mut builder = Config::builder().add_source(file);
    for (path, value) in overrides {
        builder = builder.set_override(format!("{LAYER}[0].{path}"), value)?;
    }
    let layers = builder.build()?.get_array(LAYER)?;
    let tree = layers.into_iter().next();
    tree.ok_or_else(|| ConfigError::NotFound(LAYER.to_owned()))
}

/// The file is handed to the `config` crate as the one item of a list of this name. What is in a list it
/// takes as it stands; tables at the top it makes anew, without origin, and a quoted `"kafka.brokers"` there
/// it takes for a path.
const LAYER: &str = "file";

/// Splits the variables of ours into values by path and findings.
fn overrides(variables: &BTreeMap<String, String>, keys: &[Key]) -> (Vec<(String, Value)>, Vec<Problem>) {
    let paths: BTreeMap<String, String> =
        key::plain_paths(keys).into_iter().map(|path| (variable_of(&path), path)).collect();
    let mut values = Vec::new();
    let mut problems = Vec::new();
    for (name, text) in variables.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
        match paths.get(name) {
            Some(path) => values.push((path.clone(), Value::new(Some(name), text.as_str()))),
            None => problems.push(reaches_nothing(name, paths.keys().map(String::as_str))),
        }
    }
    (values, problems)
}

/// The variable that sets the key at this path.
fn variable_of(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_uppercase())
}

fn reaches_nothing<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Problem {
    let tail = |name: &'a str| name.strip_prefix(PREFIX).unwrap_or(name);
    let wanted = name.strip_prefix(PREFIX).unwrap_or(name);
    Problem {
        line: None,
        key: name.to_owned(),
        found: Some("a variable that reaches no key".to_owned()),
        expected: "the name of a key outside lists and `kafka.properties`".to_owned(),
        hint: nearest(wanted, known.map(tail)).map(|near| format!("did you mean `{PREFIX}{near}`?")),
    }
}

/// The file as a layer. The `config` crate has a reader of its own, which forgets the lines.
#[derive(Clone, Debug)]
struct Written(Table);

impl Written {
    /// Reads TOML; all that is wrong with the syntax at once, one finding a line.
    fn parse(text: &str) -> Result<Self, Vec<Problem>> {
        let (document, errors) = DeTable::parse_recoverable(text);
        let lines = Lines::of(text);
        if errors.is_empty() {
            return Ok(Self(lines.table(document.get_ref())));
        }
        // After the first error of a line, the parser stumbles over its own recovery.
        let mut first_of_line = BTreeMap::new();
        for error in errors {
            let line = error.span().map(|span| lines.line(span.start));
            let place = (line.is_none(), line); // those with a line come first
            first_of_line.entry(place).or_insert_with(|| syntax_problem(line, error.message()));
        }
        Err(first_of_line.into_values().collect())
    }
}

fn syntax_problem(line: Option<usize>, message: &str) -> Problem {
    Problem {
        line,
        key: String::new(),
        found: Some(message.replace(", expected ", " instead of ")),
        expected: "valid TOML".to_owned(),
        hint: None,
    }
}

impl Source for Written {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Table, ConfigError> {
        let whole = Value::new(None, self.0.clone());
        let list = Value::new(None, vec![whole]);
        Ok(Table::from([(LAYER.to_owned(), list)]))
    }
}

/// Turns offsets into lines.
struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    fn of(text: &str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset)
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        table
            .iter()
            .map(|(name, value)| {
                let line = self.line(name.span().start);
                (name.get_ref().to_string(), self.value(line, value.get_ref()))
            })
            .collect()
    }

    fn value(&self, line: usize, value: &DeValue<'_>) -> Value {
        let kind = match value {
            DeValue::String(text) => ValueKind::String(text.to_string()),
            DeValue::Integer(digits) => integer(digits.as_str(), digits.radix()),
            DeValue::Float(digits) => ValueKind::Float(digits.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(truth) => ValueKind::Boolean(*truth),
            // No key takes a date: it is enough that it is none of the others.
            DeValue::Datetime(_) => ValueKind::Nil,
            DeValue::Array(items) => ValueKind::Array(
                items.iter().map(|item| self.value(self.line(item.span().start), item.get_ref())).collect(),
            ),
            DeValue::Table(table) => ValueKind::Table(self.table(table)),
        };
        Value::new(Some(&line.to_string()), kind)
    }
}

/// TOML promises 64 bits; what is longer stays recognisable as a number that no key takes.
fn integer(digits: &str, radix: u32) -> ValueKind {
    match i64::from_str_radix(digits, radix) {
        Ok(number) => ValueKind::I64(number),
        Err(_) => i128::from_str_radix(digits, radix).map_or(ValueKind::Float(f64::INFINITY), ValueKind::I128),
    }
}

#[cfg(test)]
mod tests {
    use super::super::key::Form;
    use super::*;

    const NAME: Key = Key { name: "name", doc: "", kind: Kind::Value(Form::Text("a name"), Fallback::Text("default")) };
    const KEYS: &[Key] = &[
        Key { name: "one", doc: "", kind: Kind::Table(&[NAME]) },
        Key { name: "many", doc: "", kind: Kind::Tables(&[NAME]) },
    ];

    fn tree(text: &str, variables: &[(&str, &str)]) -> (Value, Vec<Problem>) {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        read(text, &variables, KEYS).unwrap()
    }

    fn at<'a>(tree: &'a Value, path: &str) -> &'a Value {
        path.split('.').fold(tree, |value, step| match &value.kind {
            ValueKind::Table(table) => &table[step],
            ValueKind::Array(items) => &items[step.parse::<usize>().unwrap()],
            other => panic!("{path}: {other:?}"),
        })
    }

    #[test]
    fn every_value_knows_its_line() {
        let (tree, _) = tree("a = 1\n\n[[many]]\nname = [\n 2]\n[[many]]\n", &[]);
        let cases = [
            ("a", Some(1)),
            ("many", Some(3)),
            ("many.0.name", Some(4)),
            ("many.0.name.0", Some(5)),
            ("many.1", Some(6)),
            ("many.1.name", None),
        ];
        for (path, line) in cases {
            assert_eq!(Origin::of(at(&tree, path)).line(), line, "{path}");
        }
    }

    #[test]
    fn the_environment_wins_over_the_file_and_the_file_over_the_default() {
        let text = "[one]\nname = \"file\"";
        let cases = [
            ("", None, "default", Origin::Default),
            (text, None, "file", Origin::Line(2)),
            (text, Some("$env"), "$env", Origin::Variable("OUTBOXD__ONE__NAME")),
        ];
        for (text, variable, expected, origin) in cases {
            let set: Vec<_> = variable.map(|value| ("OUTBOXD__ONE__NAME", value)).into_iter().collect();
            let (tree, problems) = tree(text, &set);
            let name = at(&tree, "one.name");
            assert_eq!(name.kind, ValueKind::from(expected));
            assert_eq!(Origin::of(name), origin);
            assert_eq!(problems, []);
        }
    }

    #[test]
    fn a_variable_that_reaches_no_key_is_found_and_others_are_left_alone() {
        let variables = [("OUTBOXD__ONE__NAMES", "x"), ("OUTBOXD_TOKEN", "x"), ("PATH", "x")];
        let (_, problems) = tree("", &variables);
        let [problem] = problems.as_slice() else {
            panic!("{problems:?}");
        };
        assert_eq!(problem.key, "OUTBOXD__ONE__NAMES");
        assert_eq!(problem.hint.as_deref(), Some("did you mean `OUTBOXD__ONE__NAME`?"));
    }

    #[test]
    fn each_broken_line_is_found() {
        let problems = read("a = \nb = 1\nc = [\n", &BTreeMap::new(), KEYS).unwrap_err();
        let lines: Vec<_> = problems.iter().filter_map(|problem| problem.line).collect();
        assert!(lines.starts_with(&[1]), "{problems:?}");
        assert!(lines.len() > 1, "{problems:?}");
    }

    #[test]
    fn a_quoted_name_with_dots_is_no_path() {
        let (tree, _) = tree("\"one.name\" = \"x\"", &[]);
        assert_eq!(at(&tree, "one.name").kind, ValueKind::from("default"));
    }
}
