//! The figures of memorisation, which need nothing but token ids and masks.

/// The number of ids of `continuation` before it first differs from `original`.
pub fn verbatim(continuation: &[u32], original: &[u32]) -> usize {
    let pairs = continuation.iter().zip(original);
    pairs.take_while(|(a, b)| a == b).count()
}

/// Rouge-L: the F-measure of the longest common subsequence, 2·lcs/(length + length). It is 1 for equal sequences, two empty
/// ones included, and 0 for sequences without a common id.
pub fn rouge_l(continuation: &[u32], original: &[u32]) -> f64 {
    let lengths = continuation.len() + original.len();
    if lengths == 0 {
        return 1.0;
    }
    2.0 * common_subsequence(continuation, original) as f64 / lengths as f64
}

/// The length of the longest common subsequence.
fn common_subsequence(a: &[u32], b: &[u32]) -> usize {
    // Of the beginnings of b with the part of a so far.
    let mut lengths = vec![0; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = lengths[j + 1];
            lengths[j + 1] = if x == y {
                diagonal + 1
            } else {
                above.max(lengths[j])
            };
            diagonal = above;
        }
    }
    lengths[b.len()]
}

/// The number of labels in the longest run of kept labels.
pub fn longest_kept(keep: &[bool]) -> usize {
    let runs = keep.split(|keep| !keep);
    runs.map(<[bool]>::len).max().unwrap_or_default()
}

/// The mean and the standard deviation (of a sample; 0 for a single value).
pub fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0)).sqrt())
}
