//! Reads one table of the tree into valid values and collects what is wrong. A value that cannot be had is
//! `None`, and then a finding says why: so a section reads all its keys before it gives up.

use std::collections::BTreeMap;
use std::time::Duration;

use ::config::{Value, ValueKind};

use super::key::{Fallback, Form, Key, Kind};
use super::problem::{Fault, Problem, listed, nearest, quoted};
use super::secret::Reference;
use super::tree::{Origin, Table};

/// What all sections share: where references are looked up, and what was found wrong so far.
pub(super) struct Findings<'t> {
    pub(super) variables: &'t BTreeMap<String, String>,
    pub(super) problems: Vec<Problem>,
}

/// One table of the file.
pub(super) struct Section<'t, 'p> {
    /// `None` if something else stands in its place, which was said.
    table: Option<&'t Table>,
    path: String,
    line: Option<usize>,
    findings: &'p mut Findings<'t>,
}

/// A string that stands alone, or inside a table of one name.
pub(super) enum Named<'a> {
    Plain(&'a str),
    Inside(&'a str),
}

/// A word of the file and what it means; without a meaning, it is promised but not there yet.
pub(super) type Word<T> = (&'static str, Option<T>);

/// The next step where the file asks for what is promised only.
pub(super) const NOT_YET: &str = "this is planned, but not yet available";

impl<'t, 'p> Section<'t, 'p> {
    /// Opens the whole file.
    pub(super) fn root(tree: &'t Value, keys: &[Key], findings: &'p mut Findings<'t>) -> Self {
        Self::open(Some(tree), keys, String::new(), findings)
    }

    /// Opens a table; `None` where the parent is broken, which was said.
    fn open(value: Option<&'t Value>, keys: &[Key], path: String, findings: &'p mut Findings<'t>) -> Self {
        let mut section = Self { table: None, path, line: value.and_then(|value| Origin::of(value).line()), findings };
        match value.map(|value| (&value.kind, value)) {
            Some((ValueKind::Table(table), _)) => {
                section.table = Some(table);
                section.find_unknown(table, keys);
            }
            Some((_, value)) => {
                let fault = Fault::part(literal(value), "a table");
                section.push(section.path.clone(), Origin::of(value), fault);
            }
            None => (),
        }
        section
    }

    fn find_unknown(&mut self, table: &Table, keys: &[Key]) {
        let known = || keys.iter().map(|key| key.name);
        for (name, value) in table.iter().filter(|(name, _)| known().all(|key| key != *name)) {
            let fault = Fault {
                hint: nearest(name, known()).map(|near| format!("did you mean {}?", quoted(&self.path_of(near)))),
                ..Fault::part("an unknown key", format!("one of {}", listed(known())))
            };
            self.push(self.path_of(name), Origin::of(value), fault);
        }
    }

    /// Opens a table that is there even if it is not written.
    pub(super) fn table(&mut self, key: &Key) -> Section<'t, '_> {
        let path = self.path_of(key.name);
        Section::open(self.get(key), key.kind.keys(), path, self.findings)
    }

    /// Opens a table that means something by its absence.
    pub(super) fn optional_table(&mut self, key: &Key) -> Option<Section<'t, '_>> {
        self.get(key)?;
        Some(self.table(key))
    }

    /// Reads each table of a list. All are read, even behind a broken one.
    pub(super) fn each<T>(
        &mut self,
        key: &Key,
        mut read: impl FnMut(&mut Section<'t, '_>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let value = self.get(key)?;
        let ValueKind::Array(items) = &value.kind else {
            self.reject(key, Fault::new("a list of tables"));
            return None;
        };
        let mut all = Vec::new();
        for (place, item) in items.iter().enumerate() {
            let path = format!("{}[{place}]", self.path_of(key.name));
            let mut section = Section::open(Some(item), key.kind.keys(), path, self.findings);
            all.push(read(&mut section));
        }
        all.into_iter().collect()
    }

    /// Reads a table with names of the operator's choice, in the order of the names.
    pub(super) fn entries<T>(
        &mut self,
        key: &Key,
        read: impl Fn(&str, &str) -> Result<T, Fault>,
    ) -> Option<Vec<(String, T)>> {
        let value = self.get(key)?;
        let ValueKind::Table(table) = &value.kind else {
            self.reject(key, Fault::new("a table"));
            return None;
        };
        let sorted: BTreeMap<&String, &Value> = table.iter().collect();
        let mut all = Vec::new();
        for (name, value) in sorted {
            let path = format!("{}.{name}", self.path_of(key.name));
            let entry = self.read(path, value, key.kind.form(), |text| read(name, text));
            all.push(entry.map(|entry| (name.clone(), entry)));
        }
        all.into_iter().collect()
    }

    /// Reads a string into a valid value.
    pub(super) fn parse<T>(&mut self, key: &Key, read: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let value = self.value(key)?;
        self.read(self.path_of(key.name), value, key.kind.form(), read)
    }

    /// Reads one string, or each string of a list.
    pub(super) fn parse_each<T>(&mut self, key: &Key, read: impl Fn(&str) -> Result<T, Fault>) -> Option<Vec<T>> {
        let Some(value) = self.get(key) else {
            return Some(Vec::new());
        };
        let ValueKind::Array(items) = &value.kind else {
            return self.parse(key, read).map(|one| vec![one]);
        };
        if items.is_empty() {
            self.reject(key, Fault::new("a list that is not empty").hint("leave the key out for all")); // some would mean none
            return None;
        }
        let mut all = Vec::new();
        for (place, item) in items.iter().enumerate() {
            let path = format!("{}[{place}]", self.path_of(key.name));
            all.push(self.read(path, item, key.kind.form(), &read));
        }
        all.into_iter().collect()
    }

    /// Reads a word into its meaning.
    pub(super) fn word<T: Copy>(&mut self, key: &Key, words: &[Word<T>]) -> Option<T> {
        self.parse(key, |text| {
            let fault = Fault::new(key.kind.form().expected());
            match words.iter().find(|(word, _)| *word == text) {
                Some((_, Some(meaning))) => Ok(*meaning),
                Some((_, None)) => Err(fault.hint(NOT_YET)),
                None => {
                    let there = words.iter().filter(|(_, meaning)| meaning.is_some());
                    let near = nearest(text, there.map(|(word, _)| *word));
                    let hint = near.map(|near| format!("did you mean {}?", quoted(near)));
                    Err(Fault { hint, ..fault })
                }
            }
        })
    }

    /// Reads a duration within the limits of its key.
    pub(super) fn duration(&mut self, key: &Key) -> Option<Duration> {
        let form = key.kind.form();
        let fits = |duration: &Duration| match form {
            Form::Duration { least, most } => (least..=most).contains(duration),
            _ => true,
        };
        self.parse(key, |text| {
            let duration = humantime::parse_duration(text).ok().filter(fits);
            duration.ok_or_else(|| Fault::new(form.expected()))
        })
    }

    /// Reads a size in bytes. A number without a unit is refused, as it is for a duration.
    pub(super) fn size(&mut self, key: &Key) -> Option<usize> {
        let form = key.kind.form();
        let fits = |bytes: &u64| match form {
            Form::Size { least, most } => (least..=most).contains(bytes),
            _ => true,
        };
        self.parse(key, |text| {
            let has_unit = text.ends_with(|last: char| last.is_ascii_alphabetic());
            let size = text.parse::<bytesize::ByteSize>().ok();
            size.filter(|_| has_unit)
                .map(|size| size.as_u64())
                .filter(fits)
                .and_then(|bytes| usize::try_from(bytes).ok())
                .ok_or_else(|| Fault::new(form.expected()))
        })
    }

    /// Reads an integer within the limits of its key; of the environment, from its digits.
    pub(super) fn integer<T: TryFrom<i64>>(&mut self, key: &Key) -> Option<T> {
        let value = self.value(key)?;
        let form = key.kind.form();
        let number = match (&value.kind, Origin::of(value)) {
            (ValueKind::I64(number), _) => Some(*number),
            (ValueKind::String(digits), Origin::Variable(_)) => digits.parse().ok(),
            _ => None,
        };
        let fits = |number: &i64| match form {
            Form::Integer { least, most } => (least..=most).contains(number),
            _ => true,
        };
        let fitting = number.filter(fits).and_then(|number| T::try_from(number).ok());
        self.or_reject(key, fitting)
    }

    /// Reads a truth value; of the environment, from its word.
    pub(super) fn boolean(&mut self, key: &Key) -> Option<bool> {
        let value = self.value(key)?;
        let truth = match (&value.kind, Origin::of(value)) {
            (ValueKind::Boolean(truth), _) => Some(*truth),
            (ValueKind::String(word), Origin::Variable(_)) => word.parse().ok(),
            _ => None,
        };
        self.or_reject(key, truth)
    }

    fn or_reject<T>(&mut self, key: &Key, value: Option<T>) -> Option<T> {
        if value.is_none() {
            self.reject(key, Fault::new(key.kind.form().expected()));
        }
        value
    }

    /// Reads a string, or the string of a table that has this one name in it; `read` is told which.
    pub(super) fn parse_or_named<T>(
        &mut self,
        key: &Key,
        name: &str,
        read: impl FnOnce(Named<'_>) -> Result<T, Fault>,
    ) -> Option<T> {
        if let Some(ValueKind::Table(table)) = self.get(key).map(|value| &value.kind)
            && let Some(value) = table.get(name).filter(|_| table.len() == 1)
        {
            let path = format!("{}.{name}", self.path_of(key.name));
            return self.read(path, value, Form::Text("a text"), |text| read(Named::Inside(text)));
        }
        self.parse(key, |text| read(Named::Plain(text)))
    }

    /// Reports what is wrong with a key, alone or beside another.
    pub(super) fn reject(&mut self, key: &Key, fault: Fault) {
        let value = self.get(key);
        let shown = value.filter(|value| key.kind.form().is_printable() && Reference::of(value).is_none()).map(literal);
        let fault = Fault { found: fault.found.or(shown), ..fault };
        let origin = value.map_or(Origin::Default, Origin::of);
        self.push(self.path_of(key.name), origin, fault);
    }

    fn get(&self, key: &Key) -> Option<&'t Value> {
        self.table?.get(key.name)
    }

    /// The value of a key; if it is missing and must not, that is reported.
    fn value(&mut self, key: &Key) -> Option<&'t Value> {
        let value = self.get(key);
        let required = matches!(key.kind, Kind::Value(_, Fallback::Required));
        if value.is_none() && required && self.table.is_some() {
            let fault = Fault::part("nothing", key.kind.form().expected());
            self.push(self.path_of(key.name), Origin::Default, fault);
        }
        value
    }

    /// Fetches a text, wherever it is kept, and reads it. Of a secret or a reference nothing is repeated.
    fn read<T>(
        &mut self,
        path: String,
        value: &Value,
        form: Form,
        read: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let reference = Reference::of(value);
        let text = match reference {
            Some(reference) => reference.resolve(self.findings.variables),
            None => inline(value, form),
        };
        let printable = form.is_printable() && reference.is_none();
        let outcome = text.and_then(|text| {
            read(&text).map_err(|fault| Fault {
                found: printable.then(|| fault.found.unwrap_or_else(|| quoted(&text))),
                ..fault
            })
        });
        match outcome {
            Ok(value) => Some(value),
            Err(fault) => {
                self.push(path, Origin::of(value), fault);
                None
            }
        }
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() {
            return name.to_owned();
        }
        format!("{}.{name}", self.path)
    }

    fn push(&mut self, path: String, origin: Origin<'_>, fault: Fault) {
        let (line, key) = match origin {
            Origin::Line(line) => (Some(line), path),
            Origin::Variable(name) => (None, name.to_owned()),
            Origin::Default => (self.line, path),
        };
        self.findings.problems.push(fault.at(line, key));
    }
}

/// The text of a value that stands in the file itself.
fn inline(value: &Value, form: Form) -> Result<String, Fault> {
    match (&value.kind, form) {
        (ValueKind::String(text), _) => Ok(text.clone()),
        (ValueKind::I64(number), Form::Property) => Ok(number.to_string()),
        (ValueKind::Boolean(truth), Form::Property) => Ok(truth.to_string()),
        (ValueKind::Table(_), Form::Property) => {
            Err(Fault::part("a table", form.expected())
                .hint("a name with dots needs quotes, such as \"sasl.password\""))
        }
        _ if form.is_printable() => Err(Fault::part(literal(value), form.expected())),
        _ => Err(Fault::new(form.expected())),
    }
}

/// A value as it stands in a finding; of a list or a table only that it is one, for what it may hold.
fn literal(value: &Value) -> String {
    match &value.kind {
        ValueKind::Nil => "a date".to_owned(),
        ValueKind::Table(_) => "a table".to_owned(),
        ValueKind::Array(_) => "a list".to_owned(),
        scalar => quoted(&scalar.to_string()),
    }
}
