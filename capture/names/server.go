package names

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
)

const (
	// udpSize is what we take from a resolver in one datagram (the DNS flag day of 2020), and what an app may be sent that
	// does not say more.
	udpSize   = 1232
	plainSize = 512 // RFC 1035, section 2.3.4
	maxAnswer = 64 << 10
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
	// Questions came, of which Virtual were answered with a virtual address, Cached from the cache, Failed for want of
	// a resolver's answer, and Refused as they were none that is answered, or their answer none that is passed on.
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
	if addr.Is4() {
		return s.four.name(addr)
	}
	return s.six.name(addr)
}

// ServeStream answers the questions on a connection, one after the other, until the app closes it or is silent. asked is
// the resolver that the app meant to reach, not valid if it was this one. It does not close nc.
func (s *Server) ServeStream(ctx context.Context, nc net.Conn, asked netip.AddrPort) {
	conn := &dns.Conn{Conn: nc}
	for range tcpAtMost {
		_ = nc.SetReadDeadline(time.Now().Add(tcpIdle)) // a closed connection tells
		head, err := conn.ReadMsgHeader(nil)
		if err != nil {
			return
		}
		answer := s.answer(ctx, head, asked, maxAnswer)
		if answer == nil {
			return
		}
		_ = nc.SetWriteDeadline(time.Now().Add(tcpIdle)) // as above
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// ServePackets answers the questions on a connection of datagrams, of which first have been read, until the app is
// silent for a second. It does not close nc.
func (s *Server) ServePackets(ctx context.Context, nc net.Conn, asked netip.AddrPort, first [][]byte) {
	buf := make([]byte, maxAnswer)
	for {
		for _, question := range first {
			if answer := s.answer(ctx, question, asked, plainSize); answer != nil {
				_, _ = nc.Write(answer) // UDP may lose it
			}
		}
		_ = nc.SetReadDeadline(time.Now().Add(udpIdle)) // a closed connection tells
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		first = [][]byte{slices.Clone(buf[:n])}
	}
}

// answer returns the answer to a question, nil if it deserves none. size is how long it may be where the question does
// not say.
func (s *Server) answer(ctx context.Context, question []byte, asked netip.AddrPort, size int) []byte {
	q := new(dns.Msg)
	if err := q.Unpack(question); err != nil || q.Response {
		s.stats.Dropped.Add(1) // an answer to it could be one to somebody else
		return nil
	}
	s.stats.Questions.Add(1)
	m := s.reply(ctx, q, asked)
	m.Id, m.RecursionAvailable = q.Id, true
	if opt := q.IsEdns0(); opt != nil {
		if m.IsEdns0() == nil {
			m.SetEdns0(udpSize, opt.Do())
		}
		if size == plainSize {
			size = int(max(opt.UDPSize(), plainSize))
		}
	} else {
		m.Extra = slices.DeleteFunc(m.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	}
	m.Compress = true
	m.Truncate(size)
	b, err := m.Pack()
	if err != nil { // what came from a resolver cannot be sent on
		m = failure(q, dns.RcodeServerFailure)
		b, _ = m.Pack()
	}
	return b
}

// failure is an answer with nothing but a code.
func failure(q *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg)
	m.SetRcode(q, code)
	return m
}

func (s *Server) reply(ctx context.Context, q *dns.Msg, asked netip.AddrPort) *dns.Msg {
	refuse := func(code int) *dns.Msg {
		s.stats.Refused.Add(1)
		return failure(q, code)
	}
	switch {
	case q.Opcode != dns.OpcodeQuery:
		return refuse(dns.RcodeNotImplemented)
	case len(q.Question) != 1:
		return refuse(dns.RcodeFormatError)
	case q.Question[0].Qclass != dns.ClassINET:
		return refuse(dns.RcodeRefused)
	}
	switch q.Question[0].Qtype {
	case dns.TypeAXFR, dns.TypeIXFR, dns.TypeANY, dns.TypeOPT:
		return refuse(dns.RcodeRefused)
	}
	name := canonical(q.Question[0].Name)
	if s.c.virtual.match(name) {
		s.stats.Virtual.Add(1)
		return s.virtual(q, name)
	}
	m, err := s.resolve(ctx, q, name, asked)
	var code refusedCode
	switch {
	case errors.As(err, &code):
		return refuse(int(code))
	case err != nil:
		s.stats.Failed.Add(1)
		return failure(q, dns.RcodeServerFailure)
	}
	if m.Rcode == dns.RcodeNameError && strings.Count(name, ".") == 1 {
		if found := s.search(ctx, q, name, asked); found != nil {
			return found
		}
	}
	return m
}

// virtual answers a question about a name of the mesh.
func (s *Server) virtual(q *dns.Msg, name string) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.Authoritative = true
	head := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET, Ttl: virtualTTL}
	switch q.Question[0].Qtype {
	case dns.TypeA:
		if addr := s.four.of(name); addr.IsValid() {
			m.Answer = []dns.RR{&dns.A{Hdr: head, A: addr.AsSlice()}}
		}
	case dns.TypeAAAA:
		if addr := s.six.of(name); addr.IsValid() {
			m.Answer = []dns.RR{&dns.AAAA{Hdr: head, AAAA: addr.AsSlice()}}
		}
	}
	return m // the name exists, with what there is of it (RFC 2308, section 2.2)
}

// search looks for a name of one label in the search domains.
func (s *Server) search(ctx context.Context, q *dns.Msg, name string, asked netip.AddrPort) *dns.Msg {
	for _, domain := range s.c.search {
		longer := q.Copy()
		longer.Question[0].Name = name + domain
		m := s.replyFound(ctx, longer, asked)
		if m == nil {
			continue
		}
		alias := &dns.CNAME{
			Hdr:    dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: virtualTTL},
			Target: longer.Question[0].Name,
		}
		m.Question, m.Answer = q.Question, append([]dns.RR{alias}, m.Answer...)
		return m
	}
	return nil
}

// replyFound answers a question about a name that was made of another one, nil where there is no such name.
func (s *Server) replyFound(ctx context.Context, q *dns.Msg, asked netip.AddrPort) *dns.Msg {
	name := canonical(q.Question[0].Name)
	if s.c.virtual.match(name) {
		return s.virtual(q, name)
	}
	m, err := s.resolve(ctx, q, name, asked)
	if err != nil || m.Rcode != dns.RcodeSuccess || len(m.Answer) == 0 {
		return nil
	}
	return m
}

// refusedCode is an answer that is not passed on.
type refusedCode int

func (c refusedCode) Error() string { return dns.RcodeToString[int(c)] }

// servers are the resolvers for a name.
func (s *Server) servers(name string, asked netip.AddrPort) []string {
	for _, z := range s.c.zones {
		if name == z.name || strings.HasSuffix(name, "."+z.name) {
			return z.upstream
		}
	}
	switch {
	case len(s.c.upstream) > 0:
		return s.c.upstream
	case asked.IsValid():
		return []string{asked.String()}
	case s.system != nil:
		return s.system()
	}
	return nil
}

// resolve asks the cache, and then the resolvers for the name. The answer is a copy.
func (s *Server) resolve(ctx context.Context, q *dns.Msg, name string, asked netip.AddrPort) (*dns.Msg, error) {
	servers := s.servers(name, asked)
	if len(servers) == 0 {
		return nil, errors.New("there is no resolver")
	}
	key := cacheKey{name: name, kind: q.Question[0].Qtype, upstream: strings.Join(servers, " "), secure: q.IsEdns0() != nil && q.IsEdns0().Do()}
	m := s.cache.get(key)
	if m != nil {
		s.stats.Cached.Add(1)
	} else {
		// Those who ask the same meanwhile wait for one answer.
		v, err, _ := s.flights.Do(fmt.Sprintf("%+v %v", key, q.CheckingDisabled), func() (any, error) {
			m, err := s.ask(ctx, q, servers)
			if err == nil {
				err = s.check(name, m)
			}
			if err == nil {
				s.cache.put(key, m)
			}
			return m, err
		})
		if err != nil {
			return nil, err
		}
		m = v.(*dns.Msg).Copy()
	}
	m.Question = q.Question // in the letters that the app has written
	m.Response, m.RecursionDesired, m.CheckingDisabled = true, q.RecursionDesired, q.CheckingDisabled
	return m, nil
}

// check refuses answers with addresses of this host, or of its link, for names that have no business with them: a page of
// such a name could reach what listens here (DNS rebinding).
func (s *Server) check(name string, m *dns.Msg) error {
	if s.c.allowLocal.match(name) {
		return nil
	}
	for _, rr := range m.Answer {
		var addr netip.Addr
		switch rr := rr.(type) {
		case *dns.A:
			addr, _ = netip.AddrFromSlice(rr.A)
		case *dns.AAAA:
			addr, _ = netip.AddrFromSlice(rr.AAAA)
		default:
			continue
		}
		addr = addr.Unmap()
		if addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() || s.c.four.IsValid() && s.c.four.Contains(addr) || s.c.six.IsValid() && s.c.six.Contains(addr) {
			return refusedCode(dns.RcodeRefused)
		}
	}
	return nil
}

// ask asks resolvers, one after the other, until one answers.
func (s *Server) ask(ctx context.Context, q *dns.Msg, servers []string) (*dns.Msg, error) {
	var errs []error
	for _, server := range servers {
		m, err := s.exchange(ctx, q, server, "udp")
		if err == nil && m.Truncated {
			m, err = s.exchange(ctx, q, server, "tcp")
		}
		if err == nil && m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
			return m, nil
		}
		if err == nil {
			err = fmt.Errorf("%s answers %s", server, dns.RcodeToString[m.Rcode])
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(errs...)
}

// exchange asks one resolver. What is no answer to the question is passed over, until the time is up.
func (s *Server) exchange(ctx context.Context, q *dns.Msg, server, network string) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, s.c.timeout)
	defer cancel()
	nc, err := s.dial(ctx, network, server)
	if err != nil {
		return nil, fmt.Errorf("ask %s: %w", server, err)
	}
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })()
	ask := new(dns.Msg)
	ask.Id, ask.RecursionDesired, ask.CheckingDisabled = dns.Id(), true, q.CheckingDisabled
	ask.Question = []dns.Question{{Name: canonical(q.Question[0].Name), Qtype: q.Question[0].Qtype, Qclass: dns.ClassINET}}
	ask.SetEdns0(udpSize, q.IsEdns0() != nil && q.IsEdns0().Do())
	text, err := ask.Pack()
	if err != nil {
		return nil, err
	}
	read := func() ([]byte, error) {
		buf := make([]byte, maxAnswer)
		n, err := nc.Read(buf)
		return buf[:n], err
	}
	if network == "tcp" {
		conn := &dns.Conn{Conn: nc}
		read = func() ([]byte, error) { return conn.ReadMsgHeader(nil) }
		_, err = conn.Write(text)
	} else {
		_, err = nc.Write(text)
	}
	for err == nil {
		var b []byte
		if b, err = read(); err != nil {
			break
		}
		m := new(dns.Msg)
		if m.Unpack(b) == nil && m.Response && m.Id == ask.Id && m.Opcode == dns.OpcodeQuery && len(m.Question) == 1 &&
			canonical(m.Question[0].Name) == ask.Question[0].Name && m.Question[0].Qtype == ask.Question[0].Qtype && m.Question[0].Qclass == dns.ClassINET {
			return m, nil
		}
		s.stats.Dropped.Add(1)
	}
	if ctx.Err() != nil || errors.Is(err, io.EOF) {
		err = errors.Join(ctx.Err(), err)
	}
	return nil, fmt.Errorf("ask %s: %w", server, err)
}

// SystemResolvers are the resolvers of this host, as resolv.conf(5) names them.
func SystemResolvers() (list []string) {
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	if err != nil {
		return nil
	}
	for _, server := range c.Servers {
		list = append(list, net.JoinHostPort(server, c.Port))
	}
	return list
}
