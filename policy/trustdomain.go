package policy

import (
	"slices"
	"strings"
)

// clusterLocal is the trust domain that stands for the own one in policies of Istio, whatever that is called.
const clusterLocal = "cluster.local"

// trustDomains are the names of the own trust domain.
type trustDomains struct {
	own string
	all []string // own and its aliases; nil where own is not known
}

func newTrustDomains(c *Config) trustDomains {
	t := trustDomains{own: c.TrustDomain}
	if t.own == "" {
		return t
	}
	t.all = append(t.all, t.own)
	for _, alias := range c.TrustDomainAliases {
		if !slices.Contains(t.all, alias) {
			t.all = append(t.all, alias)
		}
	}
	return t
}

// others are what a principal, written without scheme, also stands for: the same with the other names of the trust domain.
// One that begins with "*" has no trust domain to replace, and stands for all of them anyway.
func (t *trustDomains) others(principal string, istio bool) (list []string) {
	td, path, ok := strings.Cut(principal, "/")
	if !ok || t.all == nil || !slices.Contains(t.all, td) && !(istio && td == clusterLocal) {
		return nil
	}
	for _, other := range t.all {
		if other != td {
			list = append(list, other+"/"+path)
		}
	}
	return list
}

// replaced reports whether a principal stands only for what others returns: "cluster.local" of Istio's where it is none of
// the names of the own trust domain.
func (t *trustDomains) replaced(principal string, istio bool) bool {
	return istio && t.all != nil && strings.HasPrefix(principal, clusterLocal+"/") && !slices.Contains(t.all, clusterLocal)
}
