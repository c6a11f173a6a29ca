//! The places of keys: the file and the line of every key, of one text or of a configuration with a folder of tenants.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::problem::{Problem, join};

/// The key of a template's tenants.
pub(super) const TENANTS: &str = "tenants";

/// The place of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct KeyPlace {
    /// Which of the folder's files; `None`: the configuration itself.
    file: Option<usize>,
    line: usize,
}

/// The places of all keys, by their path.
#[derive(Debug, Default)]
pub(super) struct Origins {
    /// The folder's files.
    files: Vec<PathBuf>,
    places: HashMap<String, KeyPlace>,
    /// The tenants that came from a file: their path in the merged table, and their index in that file.
    indexes: HashMap<String, usize>,
}

impl Origins {
    /// For a single text, with the line of every key.
    pub fn of_text(lines: HashMap<String, usize>) -> Self {
        let places = lines.into_iter().map(|(key, line)| (key, KeyPlace { file: None, line })).collect();
        Self { places, ..Self::default() }
    }

    /// Adds a file; returns its number.
    pub fn file(&mut self, path: PathBuf) -> usize {
        self.files.push(path);
        self.files.len() - 1
    }

    /// Adds the keys of a source in a file, without its tenants.
    pub fn source(&mut self, file: usize, name: &str, lines: &HashMap<String, usize>) {
        let path = join("sources", name);
        let list = join(&path, TENANTS);
        for (key, line) in lines {
            if is_at(key, &path) && !is_at(key, &list) {
                self.places.insert(key.clone(), KeyPlace { file: Some(file), line: *line });
            }
        }
    }

    /// Adds the tenants of a template in a file, which begin at index `first` in the merged table.
    pub fn tenants(&mut self, file: usize, name: &str, first: usize, lines: &HashMap<String, usize>) {
        let list = join(&join("sources", name), TENANTS);
        for (key, line) in lines {
            let Some(rest) = key.strip_prefix(&list).and_then(|rest| rest.strip_prefix('[')) else { continue };
            let Some((index, below)) = rest.split_once(']') else { continue };
            let Ok(index) = index.parse::<usize>() else { continue };
            let path = format!("{list}[{}]", first + index);
            self.places.insert(format!("{path}{below}"), KeyPlace { file: Some(file), line: *line });
            self.indexes.insert(path, index);
        }
    }

    /// Whether there is a folder of tenants, so that a key alone does not identify its place.
    pub fn is_folder(&self) -> bool {
        !self.files.is_empty()
    }

    /// The file of the folder that contains a key; `None`: the configuration itself.
    pub fn file_of(&self, path: &str) -> Option<&Path> {
        self.files.get(self.find(path)?.file?).map(PathBuf::as_path)
    }

    /// The index of a tenant among those in its file.
    pub fn index_of(&self, path: &str) -> Option<usize> {
        let own = || path.rsplit_once('[')?.1.strip_suffix(']')?.parse().ok();
        self.indexes.get(path).copied().or_else(own)
    }

    /// The place of a key, in words, for a message about another one.
    pub fn words(&self, path: &str) -> String {
        let Some(place) = self.find(path) else { return "the configuration".to_owned() };
        match place.file.and_then(|file| self.files.get(file)) {
            Some(file) => format!("`{}`, line {}", file.display(), place.line),
            None => format!("the configuration, line {}", place.line),
        }
    }

    /// Sets the place of a problem: that of its key, or of the table it is missing from.
    pub fn place(&self, problem: &mut Problem) {
        if problem.line.is_none()
            && let Some(place) = self.find(&problem.key)
        {
            problem.line = Some(place.line);
            problem.file = place.file.and_then(|file| self.files.get(file)).cloned();
        }
        // The index within that file.
        let Some((list, rest)) = problem.key.split_once("].") else { return };
        let list = format!("{list}]");
        if let Some(index) = self.indexes.get(&list)
            && let Some((list, _)) = list.rsplit_once('[')
        {
            problem.key = format!("{list}[{index}].{rest}");
        }
    }

    fn find(&self, path: &str) -> Option<&KeyPlace> {
        let parent = || self.places.get(path.rsplit_once('.')?.0);
        self.places.get(path).or_else(parent)
    }
}

/// Whether a key is `path` or below it.
pub(super) fn is_at(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|below| below.is_empty() || below.starts_with(['.', '[']))
}
