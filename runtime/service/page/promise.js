// What a limit promises, from the scores of the good parts that the calibration saw.

// P(at most k of n) for probability p.
function atMost(k, n, p) {
  if (p <= 0) return 1;
  if (p >= 1) return k >= n ? 1 : 0;
  let term = n * Math.log1p(-p), sum = Math.exp(term);
  for (let i = 1; i <= k; i++) {
    term += Math.log((n - i + 1) / i) + Math.log(p) - Math.log1p(-p);
    sum += Math.exp(term);
  }
  return Math.min(1, sum);
}

// The exact (Clopper-Pearson) upper bound of a share of which k of n were seen.
export function upperBound(k, n, confidence) {
  if (k >= n) return 1;
  let low = k / n, high = 1;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (atMost(k, n, middle) > 1 - confidence) low = middle;
    else high = middle;
  }
  return high;
}

const percent = (share) => `${(100 * share).toPrecision(2).replace(/\.0$/, "")} %`;

// A sentence for a limit; `calibration` as /about has it.
export function promiseOf(calibration, limit) {
  if (!calibration) return "No good parts were shown to it: this limit promises nothing. `clipsam calibrate` makes one that does.";
  const scores = calibration.good_scores, n = scores.length;
  if (!n) return "The calibration keeps no scores: what another limit promises is not known.";
  // Of many parts every so-maniest score is kept.
  const above = Math.round(scores.filter((score) => score > limit).length * (calibration.parts / n));
  const asJudged = Math.abs(limit - calibration.limit) < 1e-9;
  const k = asJudged ? calibration.above : above;
  const bound = asJudged ? calibration.false_alarms : upperBound(k, calibration.parts, calibration.confidence);
  const was = asJudged ? "" : ` As calibrated: ${percent(calibration.false_alarms)}.`;
  return `Of good parts like those shown to it, at most ${percent(bound)} score above this limit, with ${100 * calibration.confidence} % confidence (${k} of ${calibration.parts} do).${was}`;
}
