//! Reads the values of options, and says of those that cannot be what can.

use std::time::Duration;

use clap::builder::RangedI64ValueParser;

/// CPUs by number, ascending, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// A number from 1 on.
pub fn up_to(most: u32) -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=most.into())
}

/// Seconds, more than none.
pub fn seconds(text: &str) -> Result<Duration, String> {
    match seconds_or_zero(text)? {
        Duration::ZERO => Err("must be more than 0".to_owned()),
        duration => Ok(duration),
    }
}

/// Seconds.
pub fn seconds_or_zero(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number of seconds"))?;
    if !(0.0..=86_400.0).contains(&number) {
        return Err(format!("`{text}` is not between 0 and 86400 seconds"));
    }
    Ok(Duration::from_secs_f64(number))
}

/// Records a second.
pub fn rate(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number of records a second"))?;
    if !(0.001..=1e9).contains(&number) {
        return Err(format!("`{text}` is not between 0.001 and 1e9 records a second"));
    }
    Ok(number)
}

/// A share of a whole.
pub fn fraction(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if !(0.0..=1.0).contains(&number) {
        return Err(format!("`{text}` is not between 0 and 1"));
    }
    Ok(number)
}

/// A factor.
pub fn factor(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if !(0.001..=1000.0).contains(&number) {
        return Err(format!("`{text}` is not between 0.001 and 1000"));
    }
    Ok(number)
}

/// CPUs, as `0`, `1-3` or `0,2,4-5`.
pub fn cpu_list(text: &str) -> Result<CpuList, String> {
    let refuse = || format!("`{text}` is no list of CPUs such as 0, 1-3 or 0,2,4-5");
    let number = |text: &str| text.trim().parse::<usize>().ok().filter(|cpu| *cpu < 1024).ok_or_else(refuse);
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(refuse());
        }
        cpus.extend(first..=last);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(CpuList(cpus))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_sorted_and_without_twins() {
        assert_eq!(cpu_list("5,1-3,2"), Ok(CpuList(vec![1, 2, 3, 5])));
        for wrong in ["", "a", "1,", "-1", "1024"] {
            assert!(cpu_list(wrong).is_err(), "{wrong}");
        }
    }
}
