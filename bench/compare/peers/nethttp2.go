//lint:file-ignore SA1019 x/net/http2 is a peer here, whatever net/http makes of it.

package peers

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"

	"golang.org/x/net/http2"
)

// netHTTP2Entry sends every connection in a CONNECT of http2.Transport. Its receive windows are the Transport's
// own, 4 MiB a stream and 1 GiB a connection. It dials another connection when the server's limit of streams (250)
// is reached.
func netHTTP2Entry(conf *tls.Config, to string, ln net.Listener) error {
	t := &http2.Transport{
		TLSClientConfig:    conf,
		MaxReadFrameSize:   frameBytes,
		DisableCompression: true,
		DialTLSContext: func(ctx context.Context, network, _ string, conf *tls.Config) (net.Conn, error) {
			return (&tls.Dialer{Config: conf}).DialContext(ctx, network, to)
		},
	}
	return accept(ln, func(c net.Conn) { netHTTP2Flow(t, c.(*net.TCPConn)) })
}

// netHTTP2Flow carries one connection. The exit knows the target, so the authority is a fixed one.
func netHTTP2Flow(t *http2.Transport, c *net.TCPConn) {
	defer c.Close()
	body := &requestBody{Reader: c, closed: make(chan struct{})}
	res, err := t.RoundTrip(&http.Request{
		Method: http.MethodConnect,
		URL:    &url.URL{Scheme: "https", Host: ExitName + ":443"},
		Host:   ExitName + ":443",
		Header: make(http.Header),
		Body:   body, ContentLength: -1,
	})
	if err != nil {
		return
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return
	}
	if _, err := io.Copy(c, res.Body); err != nil {
		return
	}
	if err := c.CloseWrite(); err != nil {
		return
	}
	<-body.closed // the other direction may go on
}

// requestBody reads from a connection, and tells when the Transport needs no more of it.
type requestBody struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func (b *requestBody) Close() error {
	b.once.Do(func() { close(b.closed) })
	return nil
}

// netHTTP2Exit is an http2.Server whose handler connects to the target. Receive windows are 4 MiB a stream and
// 16 MiB a connection; the limit of streams is the server's own, 250.
func netHTTP2Exit(conf *tls.Config, to string, ln net.Listener) error {
	conf = conf.Clone()
	conf.NextProtos = []string{http2.NextProtoTLS}
	server := &http2.Server{
		MaxReadFrameSize:             frameBytes,
		MaxUploadBufferPerStream:     streamWindowBytes,
		MaxUploadBufferPerConnection: connWindowBytes,
	}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { netHTTP2Answer(w, r, to) })
	return accept(tls.NewListener(ln, conf), func(c net.Conn) {
		defer c.Close()
		if err := c.(*tls.Conn).Handshake(); err != nil {
			return
		}
		server.ServeConn(c, &http2.ServeConnOpts{Handler: handler})
	})
}

// netHTTP2Answer joins a CONNECT to the target. A handler can end its half of the stream only by returning, which
// ends the other half too: half-close is kept from the client to the target, not the other way.
func netHTTP2Answer(w http.ResponseWriter, r *http.Request, to string) {
	if r.Method != http.MethodConnect {
		http.Error(w, "CONNECT only", http.StatusMethodNotAllowed)
		return
	}
	out, err := dialTCP(r.Context(), to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer out.Close()
	w.WriteHeader(http.StatusOK)
	flusher := w.(http.Flusher)
	flusher.Flush()
	// Ends when the peer has ended or the handler has returned, which ends r.Body; the server waits for neither.
	go func() {
		if _, err := io.Copy(out, r.Body); err != nil {
			_ = out.Close()
			return
		}
		_ = out.CloseWrite() // fails if the target has gone, and then the handler sees it
	}()
	buf := make([]byte, 32<<10) // as io.Copy has
	for {
		n, err := out.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
			flusher.Flush()
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			panic(http.ErrAbortHandler) // a reset, not an end
		}
	}
}
