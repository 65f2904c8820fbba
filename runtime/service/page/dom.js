// Small helpers; text is only ever set as text.

export function node(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const WORDS = { good: "✓ Good", anomalous: "▲ Anomalous", not_judged: "– Not judged", failed: "! Not inspected" };
export const words = (verdict) => WORDS[verdict] ?? verdict;
