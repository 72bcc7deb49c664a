//! What the names in a partition's directory say of segments that are not there any more.
//!
//! A log whose last segment is lost looks like a shorter log, and one whose only segment is lost like a new one.
//! Nothing in the segments that are left says otherwise, but the files beside them do: an index is kept when the
//! segment after its own is durable, a snapshot of producers when its own segment is, and the file `begun` when the
//! first one is. None of them is synced, so that they are missing proves nothing; that they are there does. Pure.

use std::path::Path;

use super::segment::{base_offset_of, index_base_of, producers_base_of};
use crate::types::Offset;

/// The name of the file that says that a partition has had a segment. It is empty.
pub const BEGUN: &str = "begun";

/// The names of a partition's directory.
#[derive(Clone, Debug, Default)]
pub struct Names {
    segments: Vec<Offset>,
    indexes: Vec<Offset>,
    snapshots: Vec<Offset>,
    begun: bool,
}

/// What is missing at the end of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingEnd {
    /// The log had records up to here, and perhaps more.
    pub known_end: Offset,
    /// What says so.
    pub reason: String,
}

impl Names {
    /// The names of these files.
    pub fn of<'a>(files: impl Iterator<Item = &'a Path>) -> Names {
        let mut names = Names::default();
        for path in files {
            names.segments.extend(base_offset_of(path));
            names.indexes.extend(index_base_of(path));
            names.snapshots.extend(producers_base_of(path));
            names.begun |= path.file_name().is_some_and(|name| name == BEGUN);
        }
        names
    }

    /// Whether `begun` is there.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// The base offset of the first segment.
    pub fn first_segment(&self) -> Option<Offset> {
        self.segments.iter().copied().min()
    }

    /// What must have followed the last segment of those that recovery has not removed, of which the last begins with
    /// `last`; or been there at all, if none is left.
    pub fn missing_end(&self, last: Option<Offset>) -> Option<MissingEnd> {
        let newest = |bases: &[Offset]| bases.iter().copied().max().filter(|base| last.is_none_or(|last| *base > last));
        let missing = |base: Offset, what: &str| {
            let reason =
                format!("the segment {:020}.seg is missing, which its {what} shows to have been there", base.0);
            Some(MissingEnd { known_end: base, reason })
        };
        match (last, newest(&self.snapshots), newest(&self.indexes)) {
            (_, Some(base), _) => missing(base, "snapshot of producers"),
            (_, None, Some(base)) => missing(base, "index"),
            (Some(last), None, None) if self.indexes.contains(&last) => {
                let reason = format!("the segment after {:020}.seg is missing: that one was sealed", last.0);
                Some(MissingEnd { known_end: last, reason })
            }
            (None, None, None) if self.begun => {
                let reason = format!("all its segments are missing, the file `{BEGUN}` shows that there were some");
                Some(MissingEnd { known_end: Offset(0), reason })
            }
            _ => None,
        }
    }

    /// The segments that are missing between others, as far as their indexes show.
    pub fn missing_between(&self) -> impl Iterator<Item = Offset> {
        let range = self.segments.first().zip(self.segments.last());
        let inside = move |base: &Offset| range.is_some_and(|(first, last)| (first..last).contains(&base));
        self.indexes.iter().copied().filter(move |base| inside(base) && !self.segments.contains(base))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> Names {
        let paths: Vec<_> = files
            .iter()
            .map(|file| match file.split_once('.') {
                Some((base, suffix)) => format!("/d/{base:0>20}.{suffix}"),
                None => format!("/d/{file}"),
            })
            .collect();
        Names::of(paths.iter().map(Path::new))
    }

    fn end(files: &[&str], last: Option<u64>) -> Option<String> {
        names(files).missing_end(last.map(Offset)).map(|missing| missing.reason)
    }

    #[test]
    fn only_the_trace_itself_says_that_a_partition_has_begun() {
        assert!(!names(&["0.seg", "0.idx"]).has_begun());
        assert!(names(&["begun"]).has_begun());
    }

    #[test]
    fn what_a_crash_leaves_is_nothing_missing() {
        assert_eq!(end(&[], None), None);
        assert_eq!(end(&["begun", "0.seg"], Some(0)), None);
        assert_eq!(end(&["begun", "0.seg", "0.idx", "5.seg", "5.prd"], Some(5)), None);
        // The newest segment had no header, and recovery removed it.
        assert_eq!(end(&["begun", "0.seg", "5.seg"], Some(0)), None);
    }

    #[test]
    fn a_last_segment_that_is_gone_is_missed() {
        let sealed = end(&["begun", "0.seg", "0.idx"], Some(0)).unwrap();
        assert_eq!(sealed, "the segment after 00000000000000000000.seg is missing: that one was sealed");
        let named = end(&["begun", "0.seg", "0.idx", "5.prd"], Some(0)).unwrap();
        assert!(named.starts_with("the segment 00000000000000000005.seg is missing, which its snapshot"), "{named}");
        let named = end(&["0.seg", "5.idx"], Some(0)).unwrap();
        assert!(named.starts_with("the segment 00000000000000000005.seg is missing, which its index"), "{named}");
    }

    #[test]
    fn a_log_that_lost_everything_is_not_taken_for_a_new_one() {
        let all = end(&["begun"], None).unwrap();
        assert_eq!(all, "all its segments are missing, the file `begun` shows that there were some");
        assert!(end(&["7.idx"], None).is_some());
    }

    #[test]
    fn a_gap_is_seen_by_the_index_in_it() {
        let between = |files: &[&str]| names(files).missing_between().map(|base| base.0).collect::<Vec<_>>();
        assert_eq!(between(&["0.seg", "0.idx", "5.idx", "9.seg"]), [5]);
        // What stands before the first one was deleted on purpose.
        assert!(between(&["0.idx", "5.seg", "5.idx", "9.seg", "12.idx"]).is_empty());
    }
}
