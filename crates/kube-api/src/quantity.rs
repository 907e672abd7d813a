//! Quantities: `500m`, `1.5Gi`, `1e3`.
//!
//! Spec: Kubernetes, "Quantity". Held in billionths, so that everything that Kubernetes can hold fits without loss.

use std::cmp::Ordering;

const NANO: i128 = 1_000_000_000;
/// Kubernetes holds at most this much (2^63-1); what is larger is cut down to it.
const MOST: i128 = i64::MAX as i128 * NANO;
/// Letters of a quantity: far more than any number that is not cut down has.
pub const LENGTH_LIMIT: usize = 256;

/// How a quantity was written, and so how it is written back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `Ki`, `Mi`…
    Binary,
    /// `m`, `k`, `M`…
    Decimal,
    /// `e3`.
    Exponent,
}

/// A number with a unit. Equality and order look at the number only.
#[derive(Debug, Clone, Copy)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Kubernetes' sentence for what does not look like a quantity.
pub const WRONG_FORMAT: &str =
    "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const WRONG_SUFFIX: &str = "unable to parse quantity's suffix";

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self {
        nanos: 0,
        format: Format::Decimal,
    };

    /// Reads a quantity.
    ///
    /// # Errors
    /// Kubernetes' sentence.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() || text.len() > LENGTH_LIMIT {
            return Err(WRONG_FORMAT);
        }
        let (negative, rest) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let whole_len = digits(rest);
        let (whole, rest) = rest.split_at(whole_len);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => rest.split_at(digits(rest)),
            None => ("", rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err(WRONG_FORMAT);
        }
        let letters = suffix
            .bytes()
            .take_while(|b| b"eEinumkKMGTP".contains(b))
            .count();
        let after = &suffix[letters..];
        let tail = after.strip_prefix(['-', '+']).unwrap_or(after);
        if !tail.bytes().all(|b| b.is_ascii_digit()) {
            return Err(WRONG_FORMAT);
        }
        let (format, base, power) = unit(suffix).ok_or(WRONG_SUFFIX)?;
        let nanos = scaled(whole, fraction, base, power);
        let nanos = if negative { -nanos } else { nanos };
        Ok(Self { nanos, format })
    }

    /// Reads a JSON value: a string, or a number.
    ///
    /// # Errors
    /// Kubernetes' sentence.
    pub fn from_value(value: &serde_json::Value) -> Result<Self, &'static str> {
        match value {
            serde_json::Value::String(text) => Self::parse(text),
            serde_json::Value::Number(number) => Self::parse(&number.to_string()),
            serde_json::Value::Null => Ok(Self::ZERO),
            _ => Err(WRONG_FORMAT),
        }
    }

    /// Whether it is below, at or above zero.
    pub fn sign(self) -> Ordering {
        self.nanos.cmp(&0)
    }

    /// Whether it has no fraction.
    pub fn is_whole(self) -> bool {
        self.nanos % NANO == 0
    }

    /// The next whole number that is not smaller.
    pub fn value(self) -> i64 {
        ceil(self.nanos, NANO) as i64
    }

    /// In thousandths, rounded up.
    pub fn milli(self) -> i64 {
        i64::try_from(ceil(self.nanos, 1_000_000)).unwrap_or(i64::MAX)
    }

    /// The sum.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_add(other.nanos).clamp(-MOST, MOST),
            format: if self.nanos == 0 {
                other.format
            } else {
                self.format
            },
        }
    }

    /// Rounded up to thousandths, as resource lists are.
    #[must_use]
    pub fn round_up_milli(self) -> Self {
        Self {
            nanos: ceil(self.nanos, 1_000_000) * 1_000_000,
            format: self.format,
        }
    }

    /// Whether it is a whole multiple of `other`.
    pub fn is_multiple_of(self, other: Self) -> bool {
        other.nanos != 0 && self.nanos % other.nanos == 0
    }
}

fn ceil(nanos: i128, unit: i128) -> i128 {
    nanos.div_euclid(unit) + i128::from(nanos.rem_euclid(unit) != 0)
}

/// The base (10 or 1024) and its power behind a suffix.
fn unit(suffix: &str) -> Option<(Format, i128, i32)> {
    let power = |letters: &str| "KMGTPE".find(letters).map(|at| at as i32 + 1);
    Some(match suffix {
        "" => (Format::Decimal, 10, 0),
        "n" => (Format::Decimal, 10, -9),
        "u" => (Format::Decimal, 10, -6),
        "m" => (Format::Decimal, 10, -3),
        "k" => (Format::Decimal, 10, 3),
        "K" => return None,
        one if one.len() == 1 => (Format::Decimal, 10, power(one)? * 3),
        two if two.len() == 2 && two.ends_with('i') => (Format::Binary, 1024, power(&two[..1])?),
        exponent => {
            let number = exponent.strip_prefix(['e', 'E'])?;
            (Format::Exponent, 10, number.parse::<i32>().ok()?)
        }
    })
}

/// The number in billionths, rounded up, cut down to what Kubernetes holds.
fn scaled(whole: &str, fraction: &str, base: i128, power: i32) -> i128 {
    if base == 10 {
        return decimal(whole, fraction, power);
    }
    let factor = base.pow(power.unsigned_abs());
    let Some(whole) = number(whole).and_then(|whole| whole.checked_mul(factor)) else {
        return MOST;
    };
    if whole > MOST / NANO {
        return MOST;
    }
    // More places than these only say that the number is a little larger.
    let kept = &fraction[..fraction.len().min(18)];
    let lost = fraction[kept.len()..].bytes().any(|b| b != b'0');
    let unit = 10_i128.pow(kept.len() as u32);
    let product = number(kept).unwrap_or_default() * factor;
    let part = product / unit * NANO + ceil(product % unit * NANO, unit);
    (whole * NANO + part + i128::from(lost)).min(MOST)
}

fn number(digits: &str) -> Option<i128> {
    if digits.is_empty() {
        return Some(0);
    }
    digits.parse().ok()
}

fn decimal(whole: &str, fraction: &str, power: i32) -> i128 {
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    // value = digits * 10^scale billionths
    let scale = i64::from(power) - fraction.len() as i64 + 9;
    let length = digits.len() as i64 + scale;
    if length > 30 {
        return MOST;
    }
    let keep = (digits.len() as i64 + scale.min(0)).max(0) as usize;
    let (kept, rest) = digits.split_at(keep.min(digits.len()));
    let lost = rest.bytes().any(|b| b != b'0');
    let value = number(kept).unwrap_or(MOST) * 10_i128.pow(scale.max(0) as u32);
    (value + i128::from(lost)).min(MOST)
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

/// Kubernetes' canonical form: no fraction, the largest unit without one.
impl std::fmt::Display for Quantity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let format = match self.format {
            Format::Binary if self.nanos.abs() < 1024 * NANO => Format::Decimal,
            format => format,
        };
        if format == Format::Binary {
            let mut number = ceil(self.nanos, NANO);
            let mut power = 0;
            while number % 1024 == 0 && power < 6 {
                number /= 1024;
                power += 1;
            }
            return write!(
                f,
                "{number}{}",
                ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power]
            );
        }
        let (mut number, mut exponent) = (self.nanos, -9_i32);
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if format == Format::Exponent && exponent != 0 {
            return write!(f, "{number}e{exponent}");
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => "",
        };
        write!(f, "{number}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantities_are_written_in_their_canonical_form() {
        for (text, canonical) in [
            ("0", "0"),
            ("1", "1"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1024Mi", "1Gi"),
            ("1536Mi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("100000", "100k"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("-5", "-5"),
            ("+5k", "5k"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0001", "100u"),
            ("0.0000000001", "1n"),
            ("512Ki", "512Ki"),
            ("1Ki", "1Ki"),
            ("0.5Ki", "512"),
            ("99999999999999999999", "9223372036854775807"),
        ] {
            assert_eq!(
                Quantity::parse(text).unwrap().to_string(),
                canonical,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_kubernetes_words() {
        for text in ["", "abc", "1 Gi", "1.2.3", "-", "1Gi ", "10Xi", "é"] {
            assert_eq!(Quantity::parse(text).unwrap_err(), WRONG_FORMAT, "{text}");
        }
        for text in ["1mm", "1K", "1ki", "1e", "1Gm", "1e99999999999"] {
            assert_eq!(Quantity::parse(text).unwrap_err(), WRONG_SUFFIX, "{text}");
        }
    }

    #[test]
    fn quantities_compare_by_their_number() {
        let q = |text| Quantity::parse(text).unwrap();
        assert_eq!(q("1Gi"), q("1073741824"));
        assert!(q("1001m") > q("1"));
        assert!(q("-1") < Quantity::ZERO);
        assert_eq!(q("1.1").value(), 2);
        assert_eq!(q("100m").milli(), 100);
        assert!(!q("100m").is_whole());
        assert_eq!(q("1500m").plus(q("500m")).to_string(), "2");
    }

    proptest! {
        #[test]
        fn the_canonical_form_means_the_same(number in -1_000_000i64..1_000_000, fraction in 0u32..1000, unit in "(m|k|M|Ki|Mi|Gi|e2|)") {
            let text = format!("{number}.{fraction:03}{unit}");
            let read = Quantity::parse(&text).unwrap();
            let again = Quantity::parse(&read.to_string()).unwrap();
            // Binary units are rounded up to whole numbers when written.
            prop_assert!(again == read || (again > read && again.value() == read.value()));
            let third = Quantity::parse(&again.to_string()).unwrap();
            prop_assert_eq!(again, third);
        }

        #[test]
        fn nothing_that_a_client_sends_panics(text in "[-+0-9.eEinumkKMGTP]{0,40}") {
            let _ = Quantity::parse(&text).map(|q| q.to_string());
        }
    }
}
