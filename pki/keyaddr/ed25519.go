package keyaddr

import (
	"crypto/ed25519"
	"fmt"
	"math/big"
	"slices"
)

// ed25519Problem says why key is not a public key that one owner can sign with, "" if it is one. crypto/ed25519 finds a
// point off the curve only when it verifies, and takes keys of low order and those that are not canonical.
func ed25519Problem(key ed25519.PublicKey) string {
	if len(key) != ed25519.PublicKeySize {
		return fmt.Sprintf("the Ed25519 key has %d bytes; it must have %d", len(key), ed25519.PublicKeySize)
	}
	// RFC 8032, section 5.1.2: y in little-endian order; the highest bit is the sign of x.
	b := slices.Clone(key)
	slices.Reverse(b)
	b[0] &= 0x7f
	y := new(big.Int).SetBytes(b)
	one := big.NewInt(1)
	p := new(big.Int).Sub(new(big.Int).Lsh(one, 255), big.NewInt(19))
	// RFC 8032, section 5.1.3: "If the resulting value is >= p, decoding fails." One key would have two names.
	if y.Cmp(p) >= 0 {
		return "the Ed25519 key is not canonical (RFC 8032, section 5.1.3); make a new key"
	}
	if ed25519LowOrder(y, p) {
		return "the Ed25519 key is of low order: signatures of anybody verify with it; make a new key"
	}
	// x² = u/v with u = y²-1 and v = d·y²+1, d = -121665/121666. There is an x if u/v, and so u·v, is a square, which
	// Jacobi tells of a prime modulus. u·v = 0 is y = ±1, of low order.
	d := new(big.Int).ModInverse(big.NewInt(121666), p)
	d.Mul(d, big.NewInt(-121665)).Mod(d, p)
	y2 := new(big.Int).Mul(y, y)
	u := new(big.Int).Sub(y2, one)
	v := d.Mul(d, y2)
	v.Add(v, one)
	uv := u.Mul(u, v)
	if big.Jacobi(uv.Mod(uv, p), p) != 1 {
		return "the Ed25519 key is no point of its curve; make a new key"
	}
	return ""
}

// ed25519LowOrder reports whether the points with this y, which is below p, are among the eight whose order divides the
// cofactor 8. Their y are 1 (order 1), -1 (order 2), 0 (order 4), and for order 8 the roots of d·y⁴ + 2·y² - 1: twice
// such a point is one with y = 0, which happens where x² = -y², and that put into the curve -x² + y² = 1 + d·x²·y² is
// this equation.
func ed25519LowOrder(y, p *big.Int) bool {
	one := big.NewInt(1)
	if y.Sign() == 0 || y.Cmp(one) == 0 || y.Cmp(new(big.Int).Sub(p, one)) == 0 {
		return true
	}
	y2 := new(big.Int).Mul(y, y)
	y2.Mod(y2, p)
	// d = -121665/121666, so d·y⁴ + 2·y² - 1 = 0 is -121665·y⁴ + 121666·(2·y² - 1) = 0.
	left := new(big.Int).Mul(y2, y2)
	left.Mul(left, big.NewInt(-121665))
	right := new(big.Int).Lsh(y2, 1)
	right.Sub(right, one).Mul(right, big.NewInt(121666))
	return left.Add(left, right).Mod(left, p).Sign() == 0
}
