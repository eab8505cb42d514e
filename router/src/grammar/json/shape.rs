//! What a schema allows, by JSON type: a union that can be intersected, united and complemented.
//!
//! Only the instance itself is resolved; its items and properties stay schema expressions ([`Formula`]) until a grammar
//! node is built for them. That closes every recursion: there are finitely many expressions over finitely many places.

use super::ordered_map::OrderedMap;

use super::number::NumberPredicate;
use super::predicate::Predicate;
use super::schemas::Place;
use super::text::{TextAtom, TextPredicate};

/// A Boolean expression over the schemas of the document.
pub(super) type Formula = Predicate<Place>;

/// The instances of each type that are allowed.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) null: bool,
    pub(super) truth: bool,
    pub(super) falsehood: bool,
    pub(super) numbers: NumberPredicate,
    pub(super) strings: TextPredicate,
    /// Alternatives.
    pub(super) arrays: Vec<ArrayShape>,
    /// Alternatives.
    pub(super) objects: Vec<ObjectShape>,
}

/// One conjunction of constraints on an array.
#[derive(Clone, Debug)]
pub(super) struct ArrayShape {
    pub(super) prefix: Vec<Formula>,
    /// For items after the prefix.
    pub(super) items: Formula,
    pub(super) min: usize,
    pub(super) max: Option<usize>,
    pub(super) contains: Vec<Contains>,
    /// The place that demands unique items.
    pub(super) unique: Option<Place>,
}

/// The number of items, from index `from` on, that satisfy a formula.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Contains {
    pub(super) from: usize,
    pub(super) formula: Formula,
    pub(super) min: usize,
    pub(super) max: Option<usize>,
}

/// One conjunction of constraints on an object.
#[derive(Clone, Debug)]
pub(super) struct ObjectShape {
    pub(super) properties: OrderedMap<Property>,
    /// A partition of all other names, with the schema of each part.
    pub(super) rest: Vec<(TextPredicate, Formula)>,
    pub(super) min: usize,
    pub(super) max: Option<usize>,
    /// Some property with such a name has such a value.
    pub(super) some: Vec<(TextPredicate, Formula)>,
    /// The place that bounds the number of properties.
    pub(super) counted: Option<Place>,
}

#[derive(Clone, Debug)]
pub(super) struct Property {
    pub(super) formula: Formula,
    pub(super) required: bool,
}

/// Why two shapes have no exact intersection or complement here.
#[derive(Debug)]
pub(super) enum ShapeError {
    /// The complement of `uniqueItems`.
    NotUnique,
    /// More alternatives than the limit.
    TooMany,
    /// A name could not be held against a pattern.
    Name(String),
}

impl Shape {
    pub(super) fn any() -> Self {
        Self {
            null: true,
            truth: true,
            falsehood: true,
            numbers: Predicate::True,
            strings: Predicate::True,
            arrays: vec![ArrayShape::any()],
            objects: vec![ObjectShape::any()],
        }
    }

    pub(super) fn nothing() -> Self {
        Self {
            null: false,
            truth: false,
            falsehood: false,
            numbers: Predicate::False,
            strings: Predicate::False,
            arrays: Vec::new(),
            objects: Vec::new(),
        }
    }

    pub(super) fn union(mut self, other: Self) -> Result<Self, ShapeError> {
        self.null |= other.null;
        self.truth |= other.truth;
        self.falsehood |= other.falsehood;
        self.numbers = Predicate::or([self.numbers, other.numbers]);
        self.strings = Predicate::or([self.strings, other.strings]);
        self.arrays.extend(other.arrays);
        self.objects.extend(other.objects);
        self.bounded()
    }

    pub(super) fn intersect(&self, other: &Self) -> Result<Self, ShapeError> {
        let mut arrays = Vec::new();
        for left in &self.arrays {
            for right in &other.arrays {
                arrays.extend(left.intersect(right));
            }
        }
        let mut objects = Vec::new();
        for left in &self.objects {
            for right in &other.objects {
                objects.extend(left.intersect(right)?);
            }
        }
        Self {
            null: self.null && other.null,
            truth: self.truth && other.truth,
            falsehood: self.falsehood && other.falsehood,
            numbers: Predicate::and([self.numbers.clone(), other.numbers.clone()]),
            strings: Predicate::and([self.strings.clone(), other.strings.clone()]),
            arrays,
            objects,
        }
        .bounded()
    }

    pub(super) fn complement(&self) -> Result<Self, ShapeError> {
        let only = |arrays, objects| Self {
            null: !self.null,
            truth: !self.truth,
            falsehood: !self.falsehood,
            numbers: self.numbers.clone().negate(),
            strings: self.strings.clone().negate(),
            arrays,
            objects,
        };
        let mut result = only(vec![ArrayShape::any()], vec![ObjectShape::any()]);
        for array in &self.arrays {
            let complement = only(array.complement()?, vec![ObjectShape::any()]);
            result = result.intersect(&complement)?;
        }
        for object in &self.objects {
            let complement = only(vec![ArrayShape::any()], object.complement());
            result = result.intersect(&complement)?;
        }
        Ok(result)
    }

    fn bounded(self) -> Result<Self, ShapeError> {
        let alternatives = self.arrays.len().max(self.objects.len());
        let size = self.numbers.size().max(self.strings.size());
        if alternatives > crate::limits::MAX_SCHEMA_ALTERNATIVES || size > crate::limits::MAX_SCHEMA_PLACES {
            return Err(ShapeError::TooMany);
        }
        Ok(self)
    }
}

impl ArrayShape {
    pub(super) fn any() -> Self {
        Self { prefix: Vec::new(), items: Predicate::True, min: 0, max: None, contains: Vec::new(), unique: None }
    }

    fn item(&self, index: usize) -> &Formula {
        self.prefix.get(index).unwrap_or(&self.items)
    }

    /// `None` if no array satisfies both.
    fn intersect(&self, other: &Self) -> Option<Self> {
        let length = self.prefix.len().max(other.prefix.len());
        let mut contains = self.contains.clone();
        contains.extend(other.contains.iter().filter(|rule| !self.contains.contains(rule)).cloned());
        Self {
            prefix: (0..length)
                .map(|index| Predicate::and([self.item(index).clone(), other.item(index).clone()]))
                .collect(),
            items: Predicate::and([self.items.clone(), other.items.clone()]),
            min: self.min.max(other.min),
            max: smaller(self.max, other.max),
            contains,
            unique: self.unique.or(other.unique),
        }
        .possible()
    }

    /// Shortens the array to what can exist; `None` if nothing can.
    pub(super) fn possible(mut self) -> Option<Self> {
        if let Some(at) = self.prefix.iter().position(|item| *item == Predicate::False) {
            self.prefix.truncate(at);
            self.max = smaller(self.max, Some(at));
        } else if self.items == Predicate::False {
            self.max = smaller(self.max, Some(self.prefix.len()));
        }
        self.contains.retain(|rule| rule.min > 0 || rule.max.is_some());
        let impossible = self
            .contains
            .iter()
            .any(|rule| rule.max.is_some_and(|max| max < rule.min) || rule.min > 0 && rule.formula == Predicate::False);
        (!impossible && self.max.is_none_or(|max| self.min <= max)).then_some(self)
    }

    fn complement(&self) -> Result<Vec<Self>, ShapeError> {
        if self.unique.is_some() {
            return Err(ShapeError::NotUnique);
        }
        let mut options = Vec::new();
        if self.min > 0 {
            options.push(Self { max: Some(self.min - 1), ..Self::any() });
        }
        if let Some(max) = self.max {
            options.push(Self { min: max + 1, ..Self::any() });
        }
        for (index, item) in self.prefix.iter().enumerate() {
            let mut prefix = vec![Predicate::True; index];
            prefix.push(item.clone().negate());
            options.push(Self { prefix, min: index + 1, ..Self::any() });
        }
        let wrong = Contains { from: self.prefix.len(), formula: self.items.clone().negate(), min: 1, max: None };
        options.push(Self { contains: vec![wrong], ..Self::any() });
        for rule in &self.contains {
            if rule.min > 0 {
                options.push(Self {
                    contains: vec![Contains { min: 0, max: Some(rule.min - 1), ..rule.clone() }],
                    ..Self::any()
                });
            }
            if let Some(max) = rule.max {
                options
                    .push(Self { contains: vec![Contains { min: max + 1, max: None, ..rule.clone() }], ..Self::any() });
            }
        }
        Ok(options.into_iter().filter_map(Self::possible).collect())
    }
}

impl ObjectShape {
    pub(super) fn any() -> Self {
        Self {
            properties: OrderedMap::default(),
            rest: vec![(Predicate::True, Predicate::True)],
            min: 0,
            max: None,
            some: Vec::new(),
            counted: None,
        }
    }

    /// What this object demands of the property `name`.
    fn property(&self, name: &str) -> Result<Property, ShapeError> {
        if let Some(property) = self.properties.get(name) {
            return Ok(property.clone());
        }
        for (names, formula) in &self.rest {
            if super::text::holds(names, name).map_err(ShapeError::Name)? {
                return Ok(Property { formula: formula.clone(), required: false });
            }
        }
        // Names outside every part are not allowed.
        Ok(Property { formula: Predicate::False, required: false })
    }

    /// `None` if no object satisfies both.
    fn intersect(&self, other: &Self) -> Result<Option<Self>, ShapeError> {
        let mut properties = OrderedMap::default();
        for name in self.properties.names().chain(other.properties.names()) {
            if properties.get(name).is_some() {
                continue;
            }
            let (left, right) = (self.property(name)?, other.property(name)?);
            let formula = Predicate::and([left.formula, right.formula]);
            properties.insert(name.to_owned(), Property { formula, required: left.required || right.required });
        }
        let mut rest = Vec::new();
        for (left_names, left) in &self.rest {
            for (right_names, right) in &other.rest {
                let names = Predicate::and([left_names.clone(), right_names.clone()]);
                let formula = Predicate::and([left.clone(), right.clone()]);
                if names != Predicate::False && formula != Predicate::False {
                    rest.push((names, formula));
                }
            }
        }
        if rest.len() > crate::limits::MAX_SCHEMA_ALTERNATIVES {
            return Err(ShapeError::TooMany);
        }
        let mut some = self.some.clone();
        some.extend(other.some.iter().filter(|rule| !self.some.contains(rule)).cloned());
        let merged = Self {
            properties,
            rest,
            min: self.min.max(other.min),
            max: smaller(self.max, other.max),
            some,
            counted: self.counted.or(other.counted),
        };
        Ok(merged.is_possible().then_some(merged))
    }

    pub(super) fn is_possible(&self) -> bool {
        let required = self.properties.iter().filter(|(_, property)| property.required);
        let mut count = 0;
        for (_, property) in required {
            if property.formula == Predicate::False {
                return false;
            }
            count += 1;
        }
        self.max.is_none_or(|max| self.min.max(count) <= max)
            && self.some.iter().all(|(names, formula)| *names != Predicate::False && *formula != Predicate::False)
    }

    fn complement(&self) -> Vec<Self> {
        let mut options = Vec::new();
        if self.min > 0 {
            options.push(Self { max: Some(self.min - 1), counted: self.counted, ..Self::any() });
        }
        if let Some(max) = self.max {
            options.push(Self { min: max + 1, counted: self.counted, ..Self::any() });
        }
        let with = |name: &str, formula: Formula, required: bool| {
            let mut object = Self::any();
            object.properties.insert(name.to_owned(), Property { formula, required });
            object
        };
        let mut named = Vec::new();
        for (name, property) in self.properties.iter() {
            if property.required {
                options.push(with(name, Predicate::False, false));
            }
            options.push(with(name, property.formula.clone().negate(), true));
            named.push(Predicate::Atom(TextAtom::Literal(name.to_owned())));
        }
        let unnamed = Predicate::or(named).negate();
        let mut covered = Vec::new();
        for (names, formula) in &self.rest {
            covered.push(names.clone());
            options.push(Self {
                some: vec![(Predicate::and([names.clone(), unnamed.clone()]), formula.clone().negate())],
                ..Self::any()
            });
        }
        let outside = Predicate::and([Predicate::or(covered).negate(), unnamed]);
        options.push(Self { some: vec![(outside, Predicate::True)], ..Self::any() });
        for (names, formula) in &self.some {
            options.push(Self {
                rest: vec![(names.clone(), formula.clone().negate()), (names.clone().negate(), Predicate::True)],
                ..Self::any()
            });
        }
        options.into_iter().filter(Self::is_possible).collect()
    }
}

pub(super) fn smaller(left: Option<usize>, right: Option<usize>) -> Option<usize> {
    match (left, right) {
        (Some(left), Some(right)) => Some(left.min(right)),
        (limit, None) | (None, limit) => limit,
    }
}
