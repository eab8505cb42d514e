//! A map that keeps the order of insertion: properties are generated in the order of the schema.

use std::collections::HashMap;

/// A map by name.
#[derive(Clone, Debug)]
pub(super) struct OrderedMap<V> {
    entries: Vec<(String, V)>,
    positions: HashMap<String, usize>,
}

impl<V> Default for OrderedMap<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), positions: HashMap::new() }
    }
}

impl<V> OrderedMap<V> {
    pub(super) fn get(&self, name: &str) -> Option<&V> {
        self.positions.get(name).map(|&at| &self.entries[at].1)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut V> {
        self.positions.get(name).map(|&at| &mut self.entries[at].1)
    }

    pub(super) fn insert(&mut self, name: String, value: V) {
        if let Some(&at) = self.positions.get(&name) {
            self.entries[at].1 = value;
        } else {
            self.positions.insert(name.clone(), self.entries.len());
            self.entries.push((name, value));
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value))
    }
}
