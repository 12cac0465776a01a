package ingress_test

import (
	"io"
	"strings"
	"sync"
	"testing"

	"culvert/tunnel/h2/h2test"
	"culvert/tunnel/tunneltest/memnet"
)

// recorder is an application that keeps what it is sent, and answers every head with 200.
type recorder struct {
	mu  sync.Mutex
	got strings.Builder // guarded by mu
}

// record has what comes in at appListen kept until the test ends.
func (e *edge) record(t *testing.T) *recorder {
	t.Helper()
	l, err := e.net.Listen(appListen)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := new(recorder)
	go l.Serve(func(c *memnet.Conn) {
		defer c.Close()
		buf := make([]byte, 4096)
		for {
			n, err := c.Read(buf)
			r.mu.Lock()
			r.got.Write(buf[:n])
			r.mu.Unlock()
			if err != nil {
				return
			}
			if strings.Contains(string(buf[:n]), "\r\n\r\n") {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
			}
		}
	})
	return r
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got.String()
}

// asked is a request of HTTP/2 with some of its fields in another way: "" leaves one out. Names that are not in the request follow it.
func asked(nv ...string) []h2test.Field {
	fields := h2test.Fields(":method", "POST", ":scheme", "http", ":authority", "shop.example", ":path", "/")
	for i := 0; i < len(nv); i += 2 {
		found := false
		for j := range fields {
			if fields[j].Name == nv[i] && strings.HasPrefix(nv[i], ":") {
				fields[j].Value, found = nv[i+1], true
			}
		}
		if !found {
			fields = append(fields, h2test.Field{Name: nv[i], Value: nv[i+1]})
		}
	}
	kept := fields[:0]
	for _, f := range fields {
		if f.Value != "" || !strings.HasPrefix(f.Name, ":") {
			kept = append(kept, f)
		}
	}
	return kept
}

// What HTTP/2 can say and HTTP/1.1 cannot, or would read as something else, is refused with a record, and no byte of it reaches an
// application that speaks HTTP/1.1 (RFC 9113, sections 8.1.1, 8.2, 8.3 and 10.3).
func TestDowngradesThatAreRefused(t *testing.T) {
	const smuggled = "\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.example"
	for name, tt := range map[string]struct {
		fields  []h2test.Field
		body    []string // DATA frames; nil: the head ends the request
		trailer []h2test.Field
	}{
		"CRLF in a value":                   {fields: asked("x-a", "a\r\nx-b: b")},
		"LF in a value":                     {fields: asked("x-a", "a\nx-b: b")},
		"CR in a value":                     {fields: asked("x-a", "a\rb")},
		"NUL in a value":                    {fields: asked("x-a", "a\x00b")},
		"a request in a value":              {fields: asked("x-a", "a"+smuggled)},
		"a space around a value":            {fields: asked("x-a", " a ")},
		"CRLF in a name":                    {fields: asked("x-a: a\r\nx-b", "b")},
		"NUL in a name":                     {fields: asked("x-\x00a", "b")},
		"a colon in a name":                 {fields: asked("x-a:b", "b")},
		"a space in a name":                 {fields: asked("transfer-encoding ", "chunked")},
		"an empty name":                     {fields: asked("", "b")},
		"an uppercase name":                 {fields: asked("X-A", "b")},
		"an uppercase Transfer-Encoding":    {fields: asked("Transfer-Encoding", "chunked"), body: []string{"0\r\n\r\n"}},
		"transfer-encoding":                 {fields: asked("transfer-encoding", "chunked"), body: []string{"0\r\n\r\nGET /smuggled HTTP/1.1\r\n"}},
		"transfer-encoding: identity":       {fields: asked("transfer-encoding", "identity")},
		"connection":                        {fields: asked("connection", "x-a", "x-a", "a")},
		"connection: close":                 {fields: asked("connection", "close")},
		"keep-alive":                        {fields: asked("keep-alive", "timeout=5")},
		"proxy-connection":                  {fields: asked("proxy-connection", "keep-alive")},
		"upgrade":                           {fields: asked("upgrade", "websocket")},
		"te":                                {fields: asked("te", "trailers, chunked")},
		"DATA shorter than content-length":  {fields: asked("content-length", "5"), body: []string{"abc"}},
		"DATA longer than content-length":   {fields: asked("content-length", "3"), body: []string{"abc" + smuggled}},
		"DATA longer, in another frame":     {fields: asked("content-length", "3"), body: []string{"abc", smuggled}},
		"content-length of 0, and DATA":     {fields: asked("content-length", "0"), body: []string{smuggled}},
		"content-length without DATA":       {fields: asked("content-length", "5")},
		"content-length with empty DATA":    {fields: asked("content-length", "5"), body: []string{""}},
		"content-length and trailers early": {fields: asked("content-length", "5"), body: []string{"abc"}, trailer: h2test.Fields("x-t", "t")},
		"two content-lengths":               {fields: asked("content-length", "3", "content-length", "5"), body: []string{"abc"}},
		"a list of content-lengths":         {fields: asked("content-length", "3, 3"), body: []string{"abc"}},
		"content-length with a sign":        {fields: asked("content-length", "+3"), body: []string{"abc"}},
		"content-length of nothing":         {fields: asked("content-length", "")},
		"content-length beyond numbers":     {fields: asked("content-length", "99999999999999999999"), body: []string{"abc"}},
		"a space in the path":               {fields: asked(":path", "/a b")},
		"a request line in the path":        {fields: asked(":path", "/ HTTP/1.1\r\nHost: other.example\r\n\r\nGET /smuggled")},
		"a version in the path":             {fields: asked(":path", "/ HTTP/1.1")},
		"LF in the path":                    {fields: asked(":path", "/a\nb")},
		"NUL in the path":                   {fields: asked(":path", "/a\x00b")},
		"a tab in the path":                 {fields: asked(":path", "/a\tb")},
		"DEL in the path":                   {fields: asked(":path", "/a\x7fb")},
		"a byte beyond ASCII in the path":   {fields: asked(":path", "/a\xffb")},
		"a fragment in the path":            {fields: asked(":path", "/a#b")},
		"a quote that ends early":           {fields: asked(":path", "/a%2")},
		"a path without a slash":            {fields: asked(":path", "a")},
		"a path that is a URL":              {fields: asked(":path", "http://other.example/")},
		"a path that is a URL of no scheme": {fields: asked(":scheme", "ftp", ":path", "http://other.example/a")},
		"a path that is no path":            {fields: asked(":scheme", "x", ":path", "other:admin")},
		"another scheme":                    {fields: asked(":scheme", "ftp")},
		"a request in the scheme":           {fields: asked(":scheme", "http://shop.example/ HTTP/1.1"+smuggled)},
		"dots":                              {fields: asked(":path", "/a/../admin")},
		"dots encoded":                      {fields: asked(":path", "/a/%2e%2e/admin")},
		"a star that is not OPTIONS":        {fields: asked(":path", "*")},
		"no path":                           {fields: asked(":path", "")},
		"no scheme":                         {fields: asked(":scheme", "")},
		"no method":                         {fields: asked(":method", "")},
		"no host":                           {fields: asked(":authority", "")},
		"a method with a space":             {fields: asked(":method", "GET /smuggled")},
		"a request line in the method":      {fields: asked(":method", "GET / HTTP/1.1\r\nHost: other.example\r\nX-A: a")},
		"a method with a tab":               {fields: asked(":method", "GET\t/")},
		":authority against host":           {fields: asked("host", "other.example")},
		":authority against its port":       {fields: asked("host", "shop.example:81")},
		":authority and the same host":      {fields: asked("host", "shop.example", "host", "other.example")},
		"two hosts":                         {fields: asked(":authority", "", "host", "shop.example", "host", "other.example")},
		"the same host twice":               {fields: asked(":authority", "", "host", "shop.example", "host", "shop.example")},
		"two authorities":                   {fields: append(h2test.Fields(":authority", "other.example"), asked()...)},
		"an authority with a space":         {fields: asked(":authority", "shop.example other.example")},
		"an authority with CRLF":            {fields: asked(":authority", "shop.example\r\nx-a: b")},
		"an authority with a path":          {fields: asked(":authority", "shop.example/x")},
		"an authority that is a list":       {fields: asked(":authority", "shop.example,other.example")},
		"an authority with a user":          {fields: asked(":authority", "shop.example@other.example")},
		"a host with a user":                {fields: asked(":authority", "", "host", "shop.example@other.example")},
		"a pseudo-header field late":        {fields: append(asked("x-a", "a"), h2test.Field{Name: ":path", Value: "/admin"})},
		"an unknown pseudo-header field":    {fields: append(h2test.Fields(":host", "other.example"), asked()...)},
		":protocol":                         {fields: asked(":method", "CONNECT", ":protocol", "x y")},
		"CONNECT":                           {fields: h2test.Connect("other.example:443")},
		"a status":                          {fields: append(h2test.Fields(":status", "200"), asked()...)},
		"CRLF in a trailer":                 {fields: asked("trailer", "x-t"), body: []string{"abc"}, trailer: h2test.Fields("x-t", "t"+smuggled)},
		"a pseudo-header field in trailers": {fields: asked("trailer", "x-t"), body: []string{"abc"}, trailer: h2test.Fields(":path", "/admin")},
		"transfer-encoding in trailers":     {fields: asked("trailer", "transfer-encoding"), body: []string{"abc"}, trailer: h2test.Fields("transfer-encoding", "chunked")},
		"many fields":                       {fields: asked(strings.Split(strings.Repeat("x-a,a,", 200)+"x-a,a", ",")...)},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, nil)
			app := e.record(t)
			p := h2test.NewClient(t, e.dial(t))
			p.Handshake()
			p.WriteHeaders(1, len(tt.body) == 0 && tt.trailer == nil, tt.fields...)
			for i, data := range tt.body {
				p.WriteData(1, i == len(tt.body)-1 && tt.trailer == nil, []byte(data))
			}
			if tt.trailer != nil {
				p.WriteHeaders(1, true, tt.trailer...)
			}
			f := p.WantAny(1, "a refusal")
			p.Close()
			e.gw.Close()
			got, s := app.String(), e.gw.Stats()
			if s.Flows > 1 || s.Active != 0 || s.Connections != 0 {
				t.Errorf("%d flows, %d active, %d connections; want 1, 0, 0", s.Flows, s.Active, s.Connections)
			}
			if len(tt.body) > 0 {
				// What is wrong comes behind the head: by then that may have gone on, alone, and have had its answer; or the stream
				// was reset before anybody has looked at it, and is no flow.
				if strings.Count(got, " HTTP/1.1\r\n") > 1 || strings.Contains(got, "/smuggled") {
					t.Errorf("the application has got %q", got)
				}
				return
			}
			if f.Type != h2test.RSTStream && (f.Type != h2test.Headers || f.Value(":status") < "400") {
				t.Errorf("%v, want a refusal", f)
			}
			if got != "" {
				t.Errorf("the application has got %q", got)
			}
			if log := e.log.String(); s.Flows != 1 || !strings.Contains(log, "way=h2") || !strings.Contains(log, "err=") {
				t.Errorf("no record with a reason:\n%s", log)
			}
		})
	}
}

// Odd requests of HTTP/2 that are as they should be, and what becomes of them in HTTP/1.1.
func TestDowngradesThatAreTaken(t *testing.T) {
	for name, tt := range map[string]struct {
		fields []h2test.Field
		want   string
	}{
		"host in place of :authority":        {asked(":authority", "", "host", "shop.example"), "\r\nHost: shop.example\r\n"},
		"host beside :authority":             {asked("host", "SHOP.example"), "\r\nHost: shop.example\r\n"},
		"the content-length twice":           {asked("content-length", "0", "content-length", "0"), "POST / HTTP/1.1\r\n"},
		"te: trailers":                       {asked("te", "trailers"), "POST / HTTP/1.1\r\n"},
		"crumbs of cookies":                  {asked("cookie", "a=1", "cookie", "b=2"), "\r\nCookie: a=1; b=2\r\n"},
		"encoded line ends stay so in paths": {asked(":path", "/a?b=%0d%0aX-A:%20a"), "POST /a?b=%0d%0aX-A:%20a HTTP/1.1\r\n"},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEdge(t, nil)
			app := e.record(t)
			p := h2test.NewClient(t, e.dial(t))
			p.Handshake()
			p.WriteHeaders(1, true, tt.fields...)
			p.WantHeaders(1, "an answer", map[string]string{":status": "200"})
			if got := app.String(); !strings.Contains(got, tt.want) || strings.Count(got, "\r\n\r\n") != 1 {
				t.Errorf("the application has got %q, want one request with %q", got, tt.want)
			}
		})
	}
}

// A connection of HTTP/2 that is ended for what its client did is counted and logged, as those of peers are.
func TestOffencesAtAnIngress(t *testing.T) {
	e := newEdge(t, nil)
	p := h2test.NewClient(t, e.dial(t))
	p.Handshake()
	p.WriteFrame(h2test.Data, 0, 0, []byte("x"))
	p.WantConnError("DATA on stream 0", h2test.ProtocolError)
	e.gw.Close()
	if n := e.gw.Stats().Offences; n != 1 || !strings.Contains(e.log.String(), "connection ended for what the peer did") {
		t.Errorf("%d offences, want 1:\n%s", n, e.log)
	}
}
