package jwt

import (
	"cmp"
	"slices"
	"time"
)

// Stats says what a Verifier has done and holds.
type Stats struct {
	Hits     int64 // tokens that were remembered
	Verified int64 // signatures that were checked, good or bad
	Entries  int   // tokens that are remembered
	Bytes    int   // about what they need
	// Issuers are those whose keys are read again and again, by name.
	Issuers []IssuerStats
}

// IssuerStats says how the keys of one issuer are.
type IssuerStats struct {
	Issuer   string
	Keys     int       // that are known now
	At       time.Time // of the last success, zero if there was none
	Fetches  int64     // refreshes, failed ones included
	Failures int64     // refreshes that failed
}

// Stats returns the present figures.
func (v *Verifier) Stats() Stats {
	s := Stats{Hits: v.hits.Load(), Verified: v.verified.Load()}
	var all []*issuer
	if v.selfSigned != nil {
		all = append(all, v.selfSigned)
	}
	for name, by := range v.issuers {
		all = append(all, by)
		if by.source == nil {
			continue
		}
		one := IssuerStats{Issuer: name, Fetches: by.source.fetches.Load(), Failures: by.source.failures.Load()}
		if set := by.source.set.Load(); set != nil {
			one.Keys, one.At = len(set.keys), set.at
		}
		s.Issuers = append(s.Issuers, one)
	}
	slices.SortFunc(s.Issuers, func(a, b IssuerStats) int { return cmp.Compare(a.Issuer, b.Issuer) })
	s.Entries, s.Bytes = v.cache.size(all)
	return s
}
