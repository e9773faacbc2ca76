//! The proleptic Gregorian calendar, as far as the time windows of keys need it.

/// Days from 1970-01-01 to a day of the Gregorian calendar, negative before it. `month` is 1 to 12, `day` 1
/// to 31.
#[must_use]
pub fn days_since_epoch(year: i64, month: u8, day: u8) -> i64 {
    // Years start in March, so that the leap day is their last.
    let (month, day) = (i64::from(month), i64::from(day));
    let year = if month <= 2 { year - 1 } else { year };
    let cycle = year.div_euclid(400);
    let year_of_cycle = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    cycle * 146_097 + year_of_cycle * 365 + year_of_cycle / 4 - year_of_cycle / 100 + day_of_year - 719_468
}

/// A moment in seconds since 1970 (UTC) as RFC 3339 writes it: `2026-11-21T16:36:49Z`.
#[must_use]
pub fn rfc_3339(seconds: u64) -> String {
    let (days, rest) = (i64::try_from(seconds / 86_400).unwrap_or(i64::MAX / 2), seconds % 86_400);
    let since_cycle = days + 719_468;
    let cycle = since_cycle.div_euclid(146_097);
    let day = since_cycle.rem_euclid(146_097);
    let year_of_cycle = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = cycle * 400 + year_of_cycle + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day_of_month:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_days_are_found_in_both_directions() {
        let rows = [
            (1970, 1, 1, 0, "1970-01-01T00:00:00Z"),
            (2000, 2, 29, 951_782_400, "2000-02-29T00:00:00Z"),
            (2026, 11, 21, 1_795_219_200, "2026-11-21T00:00:00Z"),
            (2100, 3, 1, 4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (year, month, day, seconds, text) in rows {
            assert_eq!(days_since_epoch(year, month, day) * 86_400, seconds, "{text}");
            assert_eq!(rfc_3339(u64::try_from(seconds).expect("after 1970")), text);
        }
        assert_eq!(rfc_3339(1_795_279_009), "2026-11-21T16:36:49Z");
    }

    proptest! {
        #[test]
        fn text_names_the_day_it_was_made_from(days in 0u64..200_000) {
            let text = rfc_3339(days * 86_400);
            let field = |at: std::ops::Range<usize>| text[at].parse::<u8>().expect("digits");
            let year = text[..4].parse().expect("digits");
            prop_assert_eq!(days_since_epoch(year, field(5..7), field(8..10)).cast_unsigned(), days);
        }
    }
}
