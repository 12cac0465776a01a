package names

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// seedQuestions are messages of apps.
func seedQuestions(f *testing.F) (list [][]byte) {
	for _, name := range []string{"www.example.", "a.mesh.", "db.", ".", `a\.b.mesh.`, `x\000\255.example.`} {
		for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeHTTPS, dns.TypeANY} {
			q := question(name, kind)
			list = append(list, packed(f, q))
			q.SetEdns0(1232, true)
			q.IsEdns0().Option = append(q.IsEdns0().Option, &dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0011223344556677"})
			list = append(list, packed(f, q))
		}
	}
	two := question("a.mesh.", dns.TypeA)
	two.Question = append(two.Question, dns.Question{Name: "b.mesh.", Qtype: 1, Qclass: 1})
	update := question("a.mesh.", dns.TypeSOA)
	update.Opcode = dns.OpcodeUpdate
	return append(list, packed(f, two), packed(f, update), list[0][:12], []byte("\x12\x67\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"), nil)
}

// FuzzQuestion has an app send anything. It gets an answer that it can read, of the size that it can take, or none.
func FuzzQuestion(f *testing.F) {
	for _, text := range seedQuestions(f) {
		f.Add(text, false)
		f.Add(text, true)
	}
	s := newServer(f, &Config{Upstream: []string{"r1:53"}, Virtual: []string{"*.mesh", "orders.shop"}, Search: []string{"example", "mesh"}}, func(_ context.Context, network, _ string) (net.Conn, error) {
		return &told{says: func(q []byte) [][]byte { return [][]byte{echo(q)} }, tcp: network == "tcp"}, nil
	})
	f.Fuzz(func(t *testing.T, text []byte, tcp bool) {
		size := plainSize
		if tcp {
			size = dns.MaxMsgSize
		}
		b := s.answer(t.Context(), text, nobody, size)
		if b == nil {
			return
		}
		m, err := unpack(b)
		if err != nil || !m.Response || m.Id != binary.BigEndian.Uint16(text) {
			t.Fatalf("answer = %x (%v), want one that unpacks, with the ID of %x", b, err, text)
		}
		q, err := unpack(text)
		if err != nil {
			t.Fatalf("%x is answered, though it does not unpack: %v", text, err)
		}
		if opt := q.IsEdns0(); !tcp && (opt == nil || int(opt.UDPSize()) < len(b)) && len(b) > plainSize || !tcp && len(b) > udpSize {
			t.Fatalf("answer of %d bytes to an app with %v", len(b), opt)
		}
		if len(m.Question) == 1 && m.Question[0] != q.Question[0] {
			t.Fatalf("answer to %v, want %v", m.Question, q.Question)
		}
	})
}

// echo answers a question that was packed with an address, or a text where it is about something else.
func echo(text []byte) []byte {
	q := new(dns.Msg)
	if err := q.Unpack(text); err != nil {
		panic("the server asks what does not unpack: " + err.Error())
	}
	m := replyTo(q)
	head := dns.RR_Header{Name: q.Question[0].Name, Class: dns.ClassINET, Ttl: 60}
	for i := range byte(40) {
		rr := dns.RR(&dns.A{Hdr: head, A: net.IPv4(192, 0, 2, i)})
		if rr.Header().Rrtype = dns.TypeA; q.Question[0].Qtype != dns.TypeA {
			rr = &dns.TXT{Hdr: head, Txt: []string{"x"}}
			rr.Header().Rrtype = dns.TypeTXT
		}
		m.Answer = append(m.Answer, rr)
	}
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		panic("a question that was asked cannot be answered: " + err.Error())
	}
	return b
}

// FuzzAnswer has a resolver answer anything, after a head and a question that are right or not.
func FuzzAnswer(f *testing.F) {
	add := func(m *dns.Msg, kind uint16) {
		m.Compress = true
		f.Add(packed(f, m)[2:], kind, true)
		f.Add(packed(f, m)[2:], kind, false)
	}
	for _, records := range [][]string{
		{wwwRecord}, {"www.example. 1 IN CNAME a.example.", "a.example. 1 IN A 127.0.0.1"}, {"www.example. 1 IN A 192.0.2.1", "bank.example. 1 IN A 192.0.2.66"},
		{"example. 60 IN DNAME other.", "www.example. 0 IN CNAME www.other."}, {`www.example. 60 IN A \# 0`}, {},
	} {
		add(replyTo(question("www.example.", dns.TypeA), records...), dns.TypeA)
	}
	add(replyTo(question("www.example.", dns.TypeHTTPS), "www.example. 60 IN HTTPS 1 . alpn=h2,h3 ipv4hint=127.0.0.1 ipv6hint=::1 mandatory=alpn"), dns.TypeHTTPS)
	add(replyTo(question("www.example.", dns.TypeTXT), `www.example. 60 IN TXT "a" "b"`, "www.example. 60 IN RRSIG TXT 8 2 60 20300101000000 20200101000000 1 example. AAAA"), dns.TypeTXT)
	none := replyTo(question("www.example.", dns.TypeA))
	none.Rcode, none.Ns = dns.RcodeNameError, parse(soa, "example. 30 IN NSEC z.example. A")
	add(none, dns.TypeA)
	add(long(100)("", question("www.example.", dns.TypeA))[0], dns.TypeA)
	tsig := replyTo(question("www.example.", dns.TypeA), wwwRecord)
	tsig.SetEdns0(4096, true)
	tsig.Extra = append(tsig.Extra, &dns.TSIG{Hdr: dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}, Algorithm: dns.HmacSHA256, MAC: "00", MACSize: 1})
	add(tsig, dns.TypeA)
	f.Fuzz(func(t *testing.T, text []byte, kind uint16, signed bool) {
		s := newServer(t, &Config{Upstream: []string{"r1:53"}, Virtual: []string{"*.mesh"}}, func(_ context.Context, network, _ string) (net.Conn, error) {
			return &told{says: func(q []byte) [][]byte { return [][]byte{append(q[:2:2], text...), text} }, tcp: network == "tcp"}, nil
		})
		q := question("WWW.example.", kind)
		q.SetEdns0(1000, signed)
		for range 2 { // the second time it may be cached
			b := s.answer(t.Context(), packed(t, q), nobody, plainSize)
			m, err := unpack(b)
			if err != nil || m.Id != q.Id || !m.Response || len(m.Question) != 1 || m.Question[0] != q.Question[0] || len(b) > 1000 {
				t.Fatalf("answer = %x (%v), want one to the question", b, err)
			}
			for _, rr := range m.Answer {
				for _, ip := range addresses(rr) {
					if s.isLocal(ip) {
						t.Fatalf("answer has the address %v", ip)
					}
				}
			}
			if len(m.Extra) > 1 {
				t.Fatalf("additional records = %v, want our OPT alone", m.Extra)
			}
		}
	})
}

// told is a connection to a resolver that answers what it was told, and then ends.
type told struct {
	net.Conn // which nothing of is used
	tcp      bool
	says     func(q []byte) [][]byte
	left     [][]byte // datagrams, or the bytes of a stream
}

var errTold = errors.New("told: not a question")

func (c *told) Write(p []byte) (int, error) {
	q := p
	if c.tcp {
		if len(p) < 2 || int(binary.BigEndian.Uint16(p)) != len(p)-2 {
			return 0, errTold
		}
		q = p[2:]
	}
	var stream []byte
	for _, b := range c.says(q) {
		if len(b) > dns.MaxMsgSize {
			continue
		}
		if !c.tcp {
			c.left = append(c.left, b)
			continue
		}
		stream = append(binary.BigEndian.AppendUint16(stream, uint16(len(b))), b...)
	}
	if c.tcp {
		c.left = [][]byte{stream}
	}
	return len(p), nil
}

func (c *told) Read(p []byte) (int, error) {
	if len(c.left) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.left[0])
	if c.left[0] = c.left[0][n:]; !c.tcp || len(c.left[0]) == 0 {
		c.left = c.left[1:]
	}
	return n, nil
}

func (c *told) Close() error                { return nil }
func (c *told) SetDeadline(time.Time) error { return nil }
