package names

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// udpSize is what we take from a resolver in one datagram, and what an app is sent in one at most, whatever it says
	// that it takes: more is in pieces on its way (the DNS flag day of 2020). There is TCP for the rest.
	udpSize = 1232
	// plainSize is what an app takes that says nothing (RFC 1035, section 2.3.4).
	plainSize = dns.MinMsgSize
	// maxQuestion is the longest message that is read from an app. A name and the options of EDNS need a part of it.
	maxQuestion = 4 << 10
	// atOnce is how many questions of one connection are answered at a time; others wait in its socket. Apps ask for
	// IPv4 and IPv6 in one breath, and the one must not wait for the other (RFC 7766, section 6.2.1.1).
	atOnce    = 16
	tcpIdle   = 10 * time.Second // between two questions on a connection (RFC 7766, section 6.2.3)
	tcpAtMost = 100              // questions on one connection
	udpIdle   = time.Second      // after the last question of a source
)

// Dial connects to a resolver; network is "udp" or "tcp", address is "host:port".
type Dial func(ctx context.Context, network, address string) (net.Conn, error)

// Server answers questions. Methods may be called concurrently.
type Server struct {
	c         *compiled
	dial      Dial
	system    func() []string
	four, six *virtual
	cache     *cache
	flights   singleflight.Group
	stats     *Stats
}

// Stats counts questions by what became of them. Fields are read and written with atomic operations.
type Stats struct {
	// Questions came, of which Virtual were about names of the mesh, Cached were answered from the cache, Failed for
	// want of a resolver's answer or of a virtual address, and Refused as they were none that is answered, or their
	// answer none that is passed on.
	Questions, Virtual, Cached, Failed, Refused atomic.Int64
	// Dropped are messages that were no questions, and answers that were not to the question asked.
	Dropped atomic.Int64
}

// New makes a server of cfg. dial connects to resolvers. system returns the addresses of the system's resolvers as they
// are now, and may be nil. What is wrong with cfg comes back as Validate says.
func New(cfg *Config, dial Dial, system func() []string) (*Server, error) {
	c, err := cfg.compile()
	if err != nil {
		return nil, err
	}
	s := &Server{c: c, dial: dial, system: system, four: newVirtual(c.four), six: newVirtual(c.six), cache: newCache(c.entries), stats: new(Stats)}
	return s, nil
}

// Stats returns the counters.
func (s *Server) Stats() *Stats { return s.stats }

// Adopt takes over the counters of another server, which a new configuration takes the place of, and its virtual
// addresses, as far as the ranges are the same. It is called before s answers anything.
func (s *Server) Adopt(old *Server) {
	s.stats = old.stats
	if old.c.four == s.c.four {
		s.four = old.four
	}
	if old.c.six == s.c.six {
		s.six = old.six
	}
}

// Name returns the name whose virtual address addr is. virtual tells that addr is one of the range; then, without a
// name, it is nobody's, or was before a restart.
func (s *Server) Name(addr netip.Addr) (name string, virtual bool) {
	if addr = addr.Unmap().WithZone(""); addr.Is4() {
		return s.four.name(addr)
	}
	return s.six.name(addr)
}

// ServeStream answers the questions on a connection, until the app closes it or is silent, or ctx ends. Answers come as
// they are found, which need not be the order of the questions. asked is the resolver that the app meant to reach, not
// valid if it was this one. It does not close nc.
func (s *Server) ServeStream(ctx context.Context, nc net.Conn, asked netip.AddrPort) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer unblock(ctx, nc)()
	open := newAnswering()
	defer open.wait() // before the above: an app that sends no more may still take answers
	conn := &dns.Conn{Conn: nc}
	buf := make([]byte, maxQuestion)
	for range tcpAtMost {
		_ = nc.SetReadDeadline(time.Now().Add(tcpIdle)) // a closed connection tells
		if ctx.Err() != nil {
			return // unblock may have been before this deadline
		}
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		question := slices.Clone(buf[:n])
		open.add(func() {
			answer := s.answer(ctx, question, asked, dns.MaxMsgSize)
			_ = nc.SetWriteDeadline(time.Now().Add(tcpIdle)) // as above
			if answer == nil || ctx.Err() != nil {
				cancel() // who sends something else does not speak DNS
			} else if _, err := conn.Write(answer); err != nil {
				cancel()
			}
		})
	}
}

// ServePackets answers the questions on a connection of datagrams, of which first have been read, until the app is
// silent for a second and has its answers, or ctx ends. It does not close nc.
func (s *Server) ServePackets(ctx context.Context, nc net.Conn, asked netip.AddrPort, first [][]byte) {
	defer unblock(ctx, nc)()
	open := newAnswering()
	defer open.wait()
	buf := make([]byte, maxQuestion)
	for {
		for _, question := range first {
			open.add(func() {
				if answer := s.answer(ctx, question, asked, plainSize); answer != nil {
					_, _ = nc.Write(answer) // UDP may lose it
				}
			})
		}
		_ = nc.SetReadDeadline(time.Now().Add(udpIdle)) // a closed connection tells
		if ctx.Err() != nil {
			return // unblock may have been before this deadline
		}
		n, err := nc.Read(buf)
		switch {
		case err == nil:
			first = [][]byte{slices.Clone(buf[:n])}
		case errors.Is(err, os.ErrDeadlineExceeded) && open.any():
			first = nil // an app that waits is not gone
		default:
			return
		}
	}
}

// unblock ends what waits on nc when ctx ends, until stop is called.
func unblock(ctx context.Context, nc net.Conn) (stop func() bool) {
	return context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // a closed connection waits for nothing
}

// answering are the questions of one connection that are being answered.
type answering struct {
	slots chan struct{}
	group sync.WaitGroup
}

func newAnswering() *answering { return &answering{slots: make(chan struct{}, atOnce)} }

// add runs f beside its caller, which it holds up while there are too many.
func (a *answering) add(f func()) {
	a.slots <- struct{}{}
	a.group.Go(func() { // ends with its answer, which has a limit of time; wait waits for it
		defer func() { <-a.slots }()
		f()
	})
}

func (a *answering) any() bool { return len(a.slots) > 0 }

func (a *answering) wait() { a.group.Wait() }

// answer returns the answer to a question, nil if it deserves none. size is how long it may be where the question does
// not say. It takes no longer than an app waits.
func (s *Server) answer(ctx context.Context, question []byte, asked netip.AddrPort, size int) []byte {
	q, err := unpack(question)
	if err != nil || q.Response {
		s.stats.Dropped.Add(1) // an answer to it could be one to somebody else
		return nil
	}
	s.stats.Questions.Add(1)
	ctx, cancel := context.WithTimeout(ctx, s.c.patience)
	defer cancel()
	m := s.reply(ctx, q, asked)
	m.Id, m.RecursionAvailable = q.Id, true
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(udpSize, opt.Do())
		if size == plainSize {
			size = min(max(int(opt.UDPSize()), plainSize), udpSize)
		}
	}
	m.Compress = true
	m.Truncate(size)
	b, err := m.Pack()
	if err != nil || len(b) > size { // what came from a resolver cannot be sent on
		b, _ = failure(q, dns.RcodeServerFailure).Pack() // nil at worst: no answer
	}
	return b
}

// failure is an answer with nothing but a code.
func failure(q *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	return m
}

// unserved returns the code for a question that is not answered, RcodeSuccess for all others.
func unserved(q *dns.Msg) int {
	opts := 0
	for _, rr := range q.Extra {
		if rr.Header().Rrtype == dns.TypeOPT {
			opts++
		}
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return dns.RcodeNotImplemented
	case len(q.Question) != 1 || opts > 1: // RFC 9619, section 4; RFC 6891, section 6.1.1
		return dns.RcodeFormatError
	case opts == 1 && q.IsEdns0().Version() != 0: // RFC 6891, section 6.1.3
		return dns.RcodeBadVers
	}
	// RFC 6895, section 3.1: types from 128 to 255 are no data, but such as zone transfers and ANY.
	const firstMeta, lastMeta = 128, 255
	kind := q.Question[0].Qtype
	if q.Question[0].Qclass != dns.ClassINET || kind == dns.TypeNone || kind == dns.TypeOPT || kind >= firstMeta && kind <= lastMeta {
		return dns.RcodeRefused
	}
	return dns.RcodeSuccess
}

func (s *Server) reply(ctx context.Context, q *dns.Msg, asked netip.AddrPort) *dns.Msg {
	if code := unserved(q); code != dns.RcodeSuccess {
		s.stats.Refused.Add(1)
		return failure(q, code)
	}
	name := canonical(q.Question[0].Name)
	if s.c.virtual.match(name) {
		s.stats.Virtual.Add(1)
		return s.virtual(q, name)
	}
	m, cached, err := s.resolve(ctx, q, name, asked)
	var code refusedCode
	switch {
	case errors.As(err, &code):
		s.stats.Refused.Add(1)
		return failure(q, int(code))
	case err != nil:
		s.stats.Failed.Add(1)
		return failure(q, dns.RcodeServerFailure)
	}
	if m.Rcode == dns.RcodeNameError && dns.CountLabel(name) == 1 {
		if found, ofCache := s.search(ctx, q, name, asked); found != nil {
			m, cached = found, ofCache
		}
	}
	if cached {
		s.stats.Cached.Add(1)
	}
	return m
}

// virtual answers a question about a name of the mesh.
func (s *Server) virtual(q *dns.Msg, name string) *dns.Msg {
	if !isHost(name) {
		return failure(q, dns.RcodeNameError) // no flow can be to it
	}
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: virtualTTL}
	left := true
	var addr netip.Addr
	switch q.Question[0].Qtype {
	case dns.TypeA:
		if addr, left = s.four.of(name); addr.IsValid() {
			m.Answer = []dns.RR{&dns.A{Hdr: head, A: addr.AsSlice()}}
		}
	case dns.TypeAAAA:
		if addr, left = s.six.of(name); addr.IsValid() {
			m.Answer = []dns.RR{&dns.AAAA{Hdr: head, AAAA: addr.AsSlice()}}
		}
	}
	if !left {
		s.stats.Failed.Add(1)
		return failure(q, dns.RcodeServerFailure)
	}
	return m // the name exists, with what there is of it (RFC 2308, section 2.2)
}

// search looks for a name of one label in the search domains.
func (s *Server) search(ctx context.Context, q *dns.Msg, name string, asked netip.AddrPort) (m *dns.Msg, cached bool) {
	for _, domain := range s.c.search {
		longer := q.Copy()
		longer.Question[0].Name = name + domain
		if _, ok := dns.IsDomainName(longer.Question[0].Name); !ok {
			continue // too long
		}
		m, cached := s.replyFound(ctx, longer, asked)
		if m == nil {
			continue
		}
		alias := &dns.CNAME{
			Hdr:    dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: virtualTTL},
			Target: longer.Question[0].Name,
		}
		m.Question, m.Answer = q.Question, append([]dns.RR{alias}, m.Answer...)
		m.AuthenticatedData = false // nobody has signed the alias
		return m, cached
	}
	return nil, false
}

// replyFound answers a question about a name that was made of another one, nil where there is no such name. One that
// has no record of the type is a name: it would else be there for A, and not for AAAA.
func (s *Server) replyFound(ctx context.Context, q *dns.Msg, asked netip.AddrPort) (m *dns.Msg, cached bool) {
	name := canonical(q.Question[0].Name)
	if s.c.virtual.match(name) {
		s.stats.Virtual.Add(1)
		return s.virtual(q, name), false
	}
	m, cached, err := s.resolve(ctx, q, name, asked)
	if err != nil || m.Rcode != dns.RcodeSuccess {
		return nil, false
	}
	return m, cached
}
