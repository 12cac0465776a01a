// Package spiffe parses SPIFFE IDs, strictly, and finds the one that an X.509 certificate carries. The names of
// self-made keys, identities without a CA, have the same type.
//
// An ID is taken as text, byte for byte: nothing is decoded, folded to lower case or cleaned. Two IDs
// are the same identity if and only if their bytes are the same, so policy can compare them with ==.
//
// Sources: "The SPIFFE Identity and Verifiable Identity Document" (SPIFFE-ID), sections 2 to 2.4, and
// "The X.509 SPIFFE Verifiable Identity Document" (X509-SVID), sections 2, 3.1 and 5.2.
package spiffe
