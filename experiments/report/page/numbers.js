// Arrays out of the JSON island, and small dense linear algebra.

function bytesOf(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes.buffer;
}

/** float64 numbers, little endian. */
const doubles = (text) => new Float64Array(bytesOf(text));

/** float32 numbers, little endian. */
const floats = (text) => new Float32Array(bytesOf(text));

/** A square matrix as rows, from its lower triangle row by row. */
function symmetric(text, size) {
  const packed = doubles(text), rows = Array.from({ length: size }, () => new Float64Array(size));
  for (let i = 0, at = 0; i < size; i++)
    for (let j = 0; j <= i; j++, at++) rows[i][j] = rows[j][i] = packed[at];
  return rows;
}

/** A matrix as rows of `width`. */
function matrixOf(text, width) {
  const flat = doubles(text), rows = [];
  for (let at = 0; at < flat.length; at += width) rows.push(flat.subarray(at, at + width));
  return rows;
}

function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** target += factor * vector, in place. */
function add(target, factor, vector) {
  for (let i = 0; i < target.length; i++) target[i] += factor * vector[i];
  return target;
}

/** Solve A x = b by elimination with row exchange; A (rows) and b are used up. */
function solve(A, b) {
  const size = b.length;
  for (let k = 0; k < size; k++) {
    let pivot = k;
    for (let r = k + 1; r < size; r++) if (Math.abs(A[r][k]) > Math.abs(A[pivot][k])) pivot = r;
    [A[k], A[pivot]] = [A[pivot], A[k]];
    [b[k], b[pivot]] = [b[pivot], b[k]];
    for (let r = k + 1; r < size; r++) {
      const factor = A[r][k] / A[k][k];
      if (!factor) continue;
      for (let c = k; c < size; c++) A[r][c] -= factor * A[k][c];
      b[r] -= factor * b[k];
    }
  }
  for (let k = size - 1; k >= 0; k--) {
    for (let c = k + 1; c < size; c++) b[k] -= A[k][c] * b[c];
    b[k] /= A[k][k];
  }
  return b;
}

/** Least squares from inner products, columns scaled to unit norm: the weights, and the columns' norms. */
function fitted(products, right, ridge) {
  const norms = products.map((row, i) => Math.sqrt(Math.max(row[i], 1e-300)));
  const normal = products.map((row, i) => Float64Array.from(row, (v, j) => v / norms[i] / norms[j] + (i === j ? ridge : 0)));
  const scaled = Float64Array.from(right, (v, i) => v / norms[i]);
  return { weights: solve(normal, scaled.slice()), norms, scaled };
}

/** The value of a broken line at x, constant outside. */
function interpolate(x, xs, ys) {
  if (x <= xs[0]) return ys[0];
  for (let i = 1; i < xs.length; i++)
    if (x <= xs[i]) return ys[i - 1] + (ys[i] - ys[i - 1]) * (x - xs[i - 1]) / (xs[i] - xs[i - 1]);
  return ys[ys.length - 1];
}

/** Points in the order of x; those nearer than `apart` to the first of their group count as one, at their mean. */
function anchored(points, apart) {
  const groups = [];
  for (const point of points.slice().sort((a, b) => a[0] - b[0] || a[1] - b[1])) {
    const last = groups[groups.length - 1];
    if (last && point[0] - last[0][0] < apart) last.push(point);
    else groups.push([point]);
  }
  return groups.map((group) => [0, 1].map((i) => group.reduce((sum, point) => sum + point[i], 0) / group.length));
}
