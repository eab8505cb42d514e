//! How many GPUs there are, as TGI counts them: by what the environment shows of them.

use std::process::Command;

/// The GPUs that `CUDA_VISIBLE_DEVICES` or `NVIDIA_VISIBLE_DEVICES` name; of `all` as many as `nvidia-smi` lists. `None` where neither
/// says anything.
pub(crate) fn visible() -> Option<usize> {
    count(|name| std::env::var(name).ok(), listed)
}

fn count(variable: impl Fn(&str) -> Option<String>, listed: impl Fn() -> Option<usize>) -> Option<usize> {
    // An empty list hides all of them, of which the shard has a sentence.
    let named = |list: &str| list.split(',').count();
    match variable("CUDA_VISIBLE_DEVICES") {
        Some(list) => Some(named(&list)),
        None => match variable("NVIDIA_VISIBLE_DEVICES")?.as_str() {
            "all" | "void" => Some(listed().unwrap_or(0).max(1)),
            list => Some(named(list)),
        },
    }
}

/// Those that `nvidia-smi` lists, if it is there.
fn listed() -> Option<usize> {
    let output = Command::new("nvidia-smi").args(["--query-gpu=uuid", "--format=csv,noheader"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().filter(|line| !line.trim().is_empty()).count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_counted_as_tgi_does() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<usize>, Option<usize>);
        let table: [Case<'_>; 9] = [
            (&[], Some(4), None),
            (&[("CUDA_VISIBLE_DEVICES", "0,1,2")], None, Some(3)),
            (&[("CUDA_VISIBLE_DEVICES", "")], None, Some(1)),
            (&[("CUDA_VISIBLE_DEVICES", "3"), ("NVIDIA_VISIBLE_DEVICES", "all")], Some(8), Some(1)),
            (&[("NVIDIA_VISIBLE_DEVICES", "GPU-1,GPU-2")], Some(8), Some(2)),
            (&[("NVIDIA_VISIBLE_DEVICES", "all")], Some(8), Some(8)),
            (&[("NVIDIA_VISIBLE_DEVICES", "void")], Some(2), Some(2)),
            (&[("NVIDIA_VISIBLE_DEVICES", "all")], Some(0), Some(1)),
            (&[("NVIDIA_VISIBLE_DEVICES", "all")], None, Some(1)),
        ];
        for (variables, listed, expected) in table {
            let variable =
                |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
            assert_eq!(count(variable, || listed), expected, "{variables:?}");
        }
    }
}
