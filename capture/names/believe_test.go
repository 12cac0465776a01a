package names

import (
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestOnlyWhatFollowsIsBelieved(t *testing.T) {
	const zone = "example. 300 IN SOA ns.example. admin.example. 1 3600 600 86400 30"
	for _, c := range []struct {
		name              string
		answer, ns, extra []string
		nxdomain          bool
		want              string
	}{
		{name: "another name", answer: []string{"bank.example. 60 IN A 192.0.2.66", "www.example. 60 IN A 192.0.2.1"}, want: "NOERROR | www.example. 60 IN A 192.0.2.1"},
		{name: "only another name", answer: []string{"bank.example. 60 IN A 192.0.2.66"}, want: "NOERROR"},
		{name: "another type", answer: []string{"www.example. 60 IN AAAA 2001:db8::1", "www.example. 60 IN A 192.0.2.1"}, want: "NOERROR | www.example. 60 IN A 192.0.2.1"},
		{name: "another class", answer: []string{"www.example. 60 CH A 192.0.2.66"}, want: "NOERROR"},
		{name: "additional and authority", answer: []string{"www.example. 60 IN A 192.0.2.1"}, ns: []string{"bank.example. 60 IN NS ns.evil.", zone}, extra: []string{"bank.example. 60 IN A 192.0.2.66"}, want: "NOERROR | www.example. 60 IN A 192.0.2.1"},
		{name: "a chain", answer: []string{"www.example. 60 IN CNAME A.example.", "a.example. 60 IN CNAME b.example.", "b.EXAMPLE. 60 IN A 192.0.2.1"}, want: "NOERROR | www.example. 60 IN CNAME A.example. | a.example. 60 IN CNAME b.example. | b.EXAMPLE. 60 IN A 192.0.2.1"},
		{name: "a chain in disorder", answer: []string{"b.example. 60 IN A 192.0.2.1", "www.example. 60 IN CNAME b.example."}, want: "NOERROR | b.example. 60 IN A 192.0.2.1 | www.example. 60 IN CNAME b.example."},
		{name: "a chain that breaks", answer: []string{"www.example. 60 IN CNAME a.example.", "c.example. 60 IN A 192.0.2.66"}, want: "NOERROR | www.example. 60 IN CNAME a.example."},
		{name: "a loop", answer: []string{"www.example. 60 IN CNAME a.example.", "a.example. 60 IN CNAME www.example."}, want: "NOERROR | www.example. 60 IN CNAME a.example. | a.example. 60 IN CNAME www.example."},
		{name: "DNAME", answer: []string{"example. 60 IN DNAME other.test.", "www.example. 0 IN CNAME www.other.test.", "www.other.test. 60 IN A 192.0.2.1", "evil. 60 IN DNAME other.test."}, want: "NOERROR | example. 60 IN DNAME other.test. | www.example. 0 IN CNAME www.other.test. | www.other.test. 60 IN A 192.0.2.1"},
		{name: "no such name", nxdomain: true, ns: []string{zone, "evil. 60 IN SOA a. b. 1 1 1 1 1", "example. 60 IN NS ns.example."}, want: "NXDOMAIN | ; | " + zone},
		{name: "no such name behind an alias", nxdomain: true, answer: []string{"www.example. 60 IN CNAME a.test."}, ns: []string{"test. 300 IN SOA a. b. 1 1 1 1 1"}, want: "NXDOMAIN | www.example. 60 IN CNAME a.test. | ; | test. 300 IN SOA a. b. 1 1 1 1 1"},
		{name: "TTL of no sense", answer: []string{"www.example. 4294967295 IN A 192.0.2.1"}, want: "NOERROR | www.example. 0 IN A 192.0.2.1"},
		{name: "an address without one", answer: []string{`www.example. 60 IN A \# 0`}, want: "NOERROR"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
				m := replyTo(q, c.answer...)
				m.Ns, m.Extra = parse(c.ns...), parse(c.extra...)
				if c.nxdomain {
					m.Rcode = dns.RcodeNameError
				}
				return []*dns.Msg{m}
			})
			s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
			got := asks(t, s, question("www.example.", dns.TypeA))
			wantShown(t, got, c.want)
			if len(got.Extra) != 0 {
				t.Errorf("additional records = %v, want none", got.Extra)
			}
		})
	}
}

// TestLongChainEnds follows aliases for as long as resolvers do.
func TestLongChainEnds(t *testing.T) {
	var records []string
	for i := range 2000 {
		records = append(records, fmt.Sprintf("n%d.example. 60 IN CNAME n%d.example.", i, i+1))
	}
	m := newMemory(t, func(network string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q, records...)
		m.Truncated, m.Compress = network == "udp", true
		if m.Truncated {
			m.Answer = nil
		}
		return []*dns.Msg{m}
	})
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	q := question("n0.example.", dns.TypeA)
	got := answerTo(t, q, s.answer(t.Context(), packed(t, q), nobody, dns.MaxMsgSize))
	if len(got.Answer) != maxChain {
		t.Errorf("%d records, want %d", len(got.Answer), maxChain)
	}
}

func TestRebinding(t *testing.T) {
	for _, c := range []struct {
		record string // of www.example.
		bad    bool
	}{
		{"A 127.0.0.1", true},
		{"A 127.8.9.10", true},
		{"A 0.0.0.0", true},
		{"A 169.254.169.254", true},
		{"A 224.0.0.251", true},
		{"A 240.0.0.7", true}, // a virtual address
		{"A 241.0.0.7", false},
		{"A 10.0.0.1", false},
		{"A 192.0.2.1", false},
		{"AAAA ::1", true},
		{"AAAA ::", true},
		{"AAAA fe80::1", true},
		{"AAAA ff02::fb", true},
		{"AAAA ::ffff:127.0.0.1", true},
		{"AAAA ::ffff:169.254.169.254", true},
		{"AAAA ::ffff:240.0.0.7", true},
		{"AAAA fd63:756c:7665:7274::7", true}, // a virtual address
		{"AAAA 2001:db8::1", false},
		{"AAAA fd00::1", false},
		{"HTTPS 1 . alpn=h2 ipv4hint=192.0.2.1,127.0.0.1", true},
		{"HTTPS 1 . ipv6hint=2001:db8::1,::1", true},
		{"HTTPS 1 . ipv4hint=240.0.0.7", true},
		{"HTTPS 1 . ipv4hint=192.0.2.1 ipv6hint=2001:db8::1", false},
		{"SVCB 1 svc.example. ipv4hint=0.0.0.0", true},
		{"SVCB 1 svc.example. ipv6hint=fe80::1", true},
		{"SVCB 1 svc.example. port=8443", false},
		{"TXT 127.0.0.1", false},
	} {
		for _, alias := range []bool{false, true} {
			t.Run(fmt.Sprint(c.record, alias), func(t *testing.T) {
				records := []string{"www.example. 60 IN " + c.record}
				if alias {
					records = []string{"www.example. 60 IN CNAME web.test.", "web.test. 60 IN " + c.record}
				}
				kind := dns.StringToType[strings.Fields(c.record)[0]]
				m := newMemory(t, fixed(records...))
				s := newServer(t, &Config{Upstream: m.addrs(), AllowLocal: []string{"web.test"}}, m.dial)
				want, stats := dns.RcodeSuccess, "questions=2 cached=1"
				if c.bad {
					want, stats = dns.RcodeRefused, "questions=2 refused=2"
				}
				for range 2 {
					if got := asks(t, s, question("www.example.", kind)); got.Rcode != want || c.bad && len(got.Answer) > 0 {
						t.Errorf("answer = %s, want %s", shown(got), dns.RcodeToString[want])
					}
				}
				wantCounts(t, s, stats)
				allowed := newServer(t, &Config{Upstream: m.addrs(), AllowLocal: []string{"*.example"}}, m.dial)
				if got := asks(t, allowed, question("www.example.", kind)); got.Rcode != dns.RcodeSuccess || len(got.Answer) != len(records) {
					t.Errorf("answer with AllowLocal = %s, want the records", shown(got))
				}
			})
		}
	}
}

// TestAllowLocalIsByLabel has a name whose label has a dot in it, which is not below the zone it seems to be.
func TestAllowLocalIsByLabel(t *testing.T) {
	m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
		return []*dns.Msg{replyTo(q, q.Question[0].Name+" 60 IN A 127.0.0.1")}
	})
	s := newServer(t, &Config{Upstream: m.addrs(), AllowLocal: []string{"*.local.example"}}, m.dial)
	wantShown(t, asks(t, s, question("a.local.example.", dns.TypeA)), "NOERROR | a.local.example. 60 IN A 127.0.0.1")
	wantShown(t, asks(t, s, question(`a\.local.example.`, dns.TypeA)), "REFUSED")
	wantShown(t, asks(t, s, question("local.example.", dns.TypeA)), "REFUSED")
}
