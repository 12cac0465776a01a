package names

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/miekg/dns"
)

const soa = "example. 300 IN SOA ns.example. admin.example. 1 3600 600 86400 30"

func TestPassThrough(t *testing.T) {
	r := newResolver(t, zoneOf(soa,
		"www.example. 60 IN A 192.0.2.1", "www.example. 60 IN A 192.0.2.2", "www.example. 60 IN AAAA 2001:db8::1",
		"alias.example. 30 IN CNAME www.example.", `www.example. 60 IN TXT "hello" "world"`))
	s := newServer(t, &Config{Upstream: []string{r.addr}}, dialLoopback)
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"www.example.", dns.TypeA, "NOERROR | www.example. 60 IN A 192.0.2.1 | www.example. 60 IN A 192.0.2.2"},
		{"www.example.", dns.TypeAAAA, "NOERROR | www.example. 60 IN AAAA 2001:db8::1"},
		{"alias.example.", dns.TypeA, "NOERROR | alias.example. 30 IN CNAME www.example. | www.example. 60 IN A 192.0.2.1 | www.example. 60 IN A 192.0.2.2"},
		{"alias.example.", dns.TypeCNAME, "NOERROR | alias.example. 30 IN CNAME www.example."},
		{"www.example.", dns.TypeTXT, `NOERROR | www.example. 60 IN TXT "hello" "world"`},
		{"www.example.", dns.TypeMX, "NOERROR | ; | example. 300 IN SOA ns.example. admin.example. 1 3600 600 86400 30"},
		{"none.example.", dns.TypeA, "NXDOMAIN | ; | example. 300 IN SOA ns.example. admin.example. 1 3600 600 86400 30"},
	} {
		t.Run(c.name+dns.TypeToString[c.kind], func(t *testing.T) {
			wantShown(t, asks(t, s, question(c.name, c.kind)), c.want)
		})
	}
	wantCounts(t, s, "questions=7")
}

// TestLettersAreKept asks with letters of both cases, as apps do that guard against forged answers (0x20).
func TestLettersAreKept(t *testing.T) {
	m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
		if name := q.Question[0].Name; name != "www.example." {
			t.Errorf("resolver is asked for %s, want it in lower case, as it is cached", name)
		}
		return fixed("www.example. 60 IN A 192.0.2.1")("", q)
	})
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	for _, name := range []string{"wWw.eXaMpLe.", "WWW.example."} {
		wantShown(t, asks(t, s, question(name, dns.TypeA)), "NOERROR | "+name+" 60 IN A 192.0.2.1")
	}
	wantCounts(t, s, "questions=2 cached=1")
}

func TestZones(t *testing.T) {
	text := func(who string) script {
		return func(_ string, q *dns.Msg) []*dns.Msg {
			return []*dns.Msg{replyTo(q, q.Question[0].Name+" 60 IN TXT "+who)}
		}
	}
	m := newMemory(t, text("default"), text("corp"), text("dev"))
	s := newServer(t, &Config{Upstream: []string{"r1:53"}, Zones: []ZoneConfig{
		{Name: "Corp.Example", Upstream: []string{"r2:53"}},
		{Name: "dev.corp.example.", Upstream: []string{"r3:53"}},
	}}, m.dial)
	for name, who := range map[string]string{
		"example.": "default", "corp.example.": "corp", "a.CORP.example.": "corp", "xcorp.example.": "default",
		"dev.corp.example.": "dev", "a.b.dev.corp.example.": "dev", "xdev.corp.example.": "corp",
		`x\.corp.example.`: "default", `x\\.corp.example.`: "corp",
	} {
		wantShown(t, asks(t, s, question(name, dns.TypeTXT)), fmt.Sprintf("NOERROR | %s 60 IN TXT %q", name, who))
	}
	root := newServer(t, &Config{Upstream: []string{"r1:53"}, Zones: []ZoneConfig{{Name: ".", Upstream: []string{"r2:53"}}, {Name: "com", Upstream: []string{"r3:53"}}}}, m.dial)
	for name, who := range map[string]string{".": "corp", "com.": "dev", "net.": "corp"} {
		wantShown(t, asks(t, root, question(name, dns.TypeTXT)), fmt.Sprintf("NOERROR | %s 60 IN TXT %q", name, who))
	}
}

// TestWhoIsAsked asks the resolver that the app meant where none is configured, and those of the system where it meant
// none.
func TestWhoIsAsked(t *testing.T) {
	m := newMemory(t, fixed("a.example. 60 IN A 192.0.2.1"))
	m["192.0.2.53:53"], m["[2001:db8::53]:53"] = m["r1:53"], m["r1:53"]
	s, err := New(&Config{}, m.dial, func() []string { return []string{"r1:53"} })
	if err != nil {
		t.Fatal(err)
	}
	q := question("a.example.", dns.TypeA)
	for _, asked := range []netip.AddrPort{
		netip.MustParseAddrPort("192.0.2.53:53"), netip.MustParseAddrPort("[::ffff:192.0.2.53]:53"), netip.MustParseAddrPort("[2001:db8::53]:53"), nobody,
	} {
		wantShown(t, answerTo(t, q, s.answer(t.Context(), packed(t, q), asked, plainSize)), "NOERROR | a.example. 60 IN A 192.0.2.1")
	}
	wantCounts(t, s, "questions=4 cached=1")
	wantShown(t, asks(t, newServer(t, &Config{}, m.dial), q), "SERVFAIL")
}

func TestSearch(t *testing.T) {
	m := newMemory(t, zoneOf(soa, "db.two.example. 60 IN A 192.0.2.1", "dotted.db. 60 IN A 192.0.2.9", "local. 60 IN A 192.0.2.8", "both.two.example. 60 IN A 192.0.2.2", "both.three.example. 60 IN AAAA 2001:db8::1"))
	s := newServer(t, &Config{Upstream: m.addrs(), Search: []string{"One.example", "two.example.", "three.example", "mesh"}, Virtual: []string{"shop.mesh"}}, m.dial)
	four, _ := s.four.of("shop.mesh.")
	const none = " | ; | example. 300 IN SOA ns.example. admin.example. 1 3600 600 86400 30"
	for _, c := range []struct {
		name string
		kind uint16
		want string
	}{
		{"DB.", dns.TypeA, "NOERROR | DB. 60 IN CNAME db.two.example. | db.two.example. 60 IN A 192.0.2.1"},
		{"db.", dns.TypeAAAA, "NOERROR | db. 60 IN CNAME db.two.example." + none},
		{"both.", dns.TypeAAAA, "NOERROR | both. 60 IN CNAME both.two.example." + none},
		{"local.", dns.TypeA, "NOERROR | local. 60 IN A 192.0.2.8"},
		{"shop.", dns.TypeA, "NOERROR | shop. 60 IN CNAME shop.mesh. | shop.mesh. 60 IN A " + four.String()},
		{"shop.", dns.TypeTXT, "NOERROR | shop. 60 IN CNAME shop.mesh."},
		{"nowhere.", dns.TypeA, "NXDOMAIN"},
		{"db.two.", dns.TypeA, "NXDOMAIN"},
		{`db\.two.`, dns.TypeA, "NXDOMAIN"},
		{".", dns.TypeA, "NXDOMAIN"},
	} {
		t.Run(c.name+dns.TypeToString[c.kind], func(t *testing.T) {
			wantShown(t, asks(t, s, question(c.name, c.kind)), c.want)
		})
	}
	if n := s.stats.Questions.Load(); n != 10 {
		t.Errorf("Questions = %d, want 10: each of an app once", n)
	}
}

func TestQuestionsThatAreNotAnswered(t *testing.T) {
	m := newMemory(t, silent)
	s := newServer(t, &Config{Upstream: m.addrs(), Virtual: []string{"*.mesh"}}, m.dial)
	change := func(f func(*dns.Msg)) *dns.Msg {
		q := question("a.mesh.", dns.TypeA)
		f(q)
		return q
	}
	kind := func(k uint16) *dns.Msg { return question("a.mesh.", k) }
	for name, c := range map[string]struct {
		q    *dns.Msg
		code int
	}{
		"AXFR":          {kind(dns.TypeAXFR), dns.RcodeRefused},
		"IXFR":          {kind(dns.TypeIXFR), dns.RcodeRefused},
		"ANY":           {kind(dns.TypeANY), dns.RcodeRefused},
		"OPT":           {kind(dns.TypeOPT), dns.RcodeRefused},
		"MAILB":         {kind(dns.TypeMAILB), dns.RcodeRefused},
		"TKEY":          {kind(dns.TypeTKEY), dns.RcodeRefused},
		"type 0":        {kind(0), dns.RcodeRefused},
		"CHAOS":         {change(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassCHAOS }), dns.RcodeRefused},
		"any class":     {change(func(q *dns.Msg) { q.Question[0].Qclass = dns.ClassANY }), dns.RcodeRefused},
		"two questions": {change(func(q *dns.Msg) { q.Question = append(q.Question, q.Question[0]) }), dns.RcodeFormatError},
		"no question":   {change(func(q *dns.Msg) { q.Question = nil }), dns.RcodeFormatError},
		"two OPT":       {change(func(q *dns.Msg) { q.SetEdns0(1232, false); q.SetEdns0(1232, false) }), dns.RcodeFormatError},
		"EDNS 1":        {change(func(q *dns.Msg) { q.SetEdns0(1232, false); q.IsEdns0().SetVersion(1) }), dns.RcodeBadVers},
		"UPDATE":        {change(func(q *dns.Msg) { q.Opcode = dns.OpcodeUpdate }), dns.RcodeNotImplemented},
		"NOTIFY":        {change(func(q *dns.Msg) { q.Opcode = dns.OpcodeNotify }), dns.RcodeNotImplemented},
	} {
		t.Run(name, func(t *testing.T) {
			b := s.answer(t.Context(), packed(t, c.q), nobody, plainSize)
			got, err := unpack(b)
			if err != nil || got.Id != c.q.Id || !got.Response || got.Rcode != c.code || len(got.Answer) != 0 {
				t.Errorf("answer = %v (%v), want %s and nothing else", got, err, dns.RcodeToString[c.code])
			}
		})
	}
	wantCounts(t, s, "questions=15 refused=15")
	if n := m["r1:53"].asked.Load(); n != 0 {
		t.Errorf("the resolver was asked %d times, want 0", n)
	}
}

func TestDroppedMessages(t *testing.T) {
	s := newServer(t, &Config{Virtual: []string{"*.mesh"}}, nil)
	good := packed(t, question("a.mesh.", dns.TypeA))
	answer := question("a.mesh.", dns.TypeA)
	answer.Response = true
	lies := append([]byte(nil), good...)
	lies[11] = 1 // an additional record that is not there
	list := [][]byte{nil, {}, good[:11], good[:12], good[:15], good[:len(good)-1], lies, packed(t, answer), []byte("GET / HTTP/1.1\r\n\r\n")}
	for _, text := range list {
		if b := s.answer(t.Context(), text, nobody, plainSize); b != nil {
			t.Errorf("answer(%x) = %x, want none", text, b)
		}
	}
	wantCounts(t, s, fmt.Sprintf("dropped=%d", len(list)))
}

// long is an answer with n addresses, 16 bytes each beside the head and the question.
func long(n int) script {
	return func(_ string, q *dns.Msg) []*dns.Msg {
		m := replyTo(q)
		for i := range n {
			m.Answer = append(m.Answer, parse(fmt.Sprintf("%s 60 IN A 192.0.%d.%d", q.Question[0].Name, i/250, i%250+1))...)
		}
		m.Compress = true
		return []*dns.Msg{m}
	}
}

// TestAnswersFit asks for more than fits in a datagram.
func TestAnswersFit(t *testing.T) {
	const records = 200
	m := newMemory(t, long(records))
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	for _, c := range []struct {
		name  string
		edns  uint16 // 0: without
		size  int    // of the network
		limit int
		whole bool
	}{
		{"without EDNS", 0, plainSize, 512, false},
		{"too small a size", 100, plainSize, 512, false},
		{"600", 600, plainSize, 600, false},
		{"1232", 1232, plainSize, 1232, false},
		{"more than one packet", 65535, plainSize, 1232, false},
		{"TCP", 0, dns.MaxMsgSize, dns.MaxMsgSize, true},
		{"TCP with EDNS", 512, dns.MaxMsgSize, dns.MaxMsgSize, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := question("many.example.", dns.TypeA)
			if c.edns != 0 {
				q.SetEdns0(c.edns, false)
			}
			b := s.answer(t.Context(), packed(t, q), nobody, c.size)
			got := answerTo(t, q, b)
			if len(b) > c.limit || got.Truncated == c.whole || (len(got.Answer) == records) != c.whole || len(got.Answer) == 0 {
				t.Errorf("%d bytes with %d records, truncated %v; want at most %d bytes, truncated %v", len(b), len(got.Answer), got.Truncated, c.limit, !c.whole)
			}
			if opt := got.IsEdns0(); (opt != nil) != (c.edns != 0) || opt != nil && (opt.UDPSize() != udpSize || len(opt.Option) != 0) {
				t.Errorf("OPT of the answer = %v, want one of our own where the question has one", opt)
			}
		})
	}
}

// TestHopByHopRecordsEnd has a resolver send what is between it and us. With a TSIG, an answer would not be cut.
func TestHopByHopRecordsEnd(t *testing.T) {
	m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
		a := long(200)("", q)[0]
		a.Extra = append(a.Extra, parse("other.example. 60 IN A 192.0.2.66")...)
		a.SetEdns0(4096, true)
		a.IsEdns0().Option = append(a.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
		a.Extra = append(a.Extra, &dns.TSIG{Hdr: dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: dns.HmacSHA256, MAC: "00", MACSize: 1})
		return []*dns.Msg{a}
	})
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	q := question("many.example.", dns.TypeA)
	b := s.answer(t.Context(), packed(t, q), nobody, plainSize)
	if got := answerTo(t, q, b); len(b) > plainSize || len(got.Extra) != 0 {
		t.Errorf("%d bytes with %v, want at most %d and nothing of the hop", len(b), got.Extra, plainSize)
	}
}

// TestCheckingDisabledIsKeptApart lets an app that checks signatures itself not fill the cache of those that do not.
func TestCheckingDisabledIsKeptApart(t *testing.T) {
	m := newMemory(t, func(_ string, q *dns.Msg) []*dns.Msg {
		if !q.CheckingDisabled {
			return says(dns.RcodeServerFailure)("", q)
		}
		return fixed("forged.example. 60 IN A 192.0.2.66")("", q)
	})
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	unchecked := question("forged.example.", dns.TypeA)
	unchecked.CheckingDisabled = true
	wantShown(t, asks(t, s, unchecked), "NOERROR | forged.example. 60 IN A 192.0.2.66")
	wantShown(t, asks(t, s, question("forged.example.", dns.TypeA)), "SERVFAIL")
}

func TestSignaturesForWhoAsksForThem(t *testing.T) {
	const sig = "www.example. 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example. AAAA"
	m := newMemory(t, fixed("www.example. 60 IN A 192.0.2.1", sig))
	s := newServer(t, &Config{Upstream: m.addrs()}, m.dial)
	wantShown(t, asks(t, s, question("www.example.", dns.TypeA)), "NOERROR | www.example. 60 IN A 192.0.2.1")
	q := question("www.example.", dns.TypeA)
	q.SetEdns0(1232, true)
	got := asks(t, s, q)
	wantShown(t, got, "NOERROR | www.example. 60 IN A 192.0.2.1 | "+sig)
	if opt := got.IsEdns0(); opt == nil || !opt.Do() {
		t.Errorf("OPT = %v, want the DO bit (RFC 3225, section 3)", opt)
	}
}
