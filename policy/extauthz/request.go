package extauthz

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	authv3 "github.com/envoyproxy/go-control-plane/envoy/service/auth/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"culvert/policy"
)

// maxAskBytes is how long a question may be: the fields of a request that is shown whole have 64 KiB at most, and names and
// addresses are short.
const maxAskBytes = 80 << 10

// Keys of AttributeContext.context_extensions.
const (
	keyListener  = "listener"
	keyWorkload  = "workload"
	keyNamespace = "namespace" // of the workload
	keyRemote    = "remote"
)

// question is what an authorizer is asked about a flow, in the words of AttributeContext (attribute_context.proto of
// envoy.service.auth.v3). An error is for the operator: the flow cannot be asked about.
//
// source and destination are the two ends as this hop knows them, their principals with "spiffe://" as Envoy sends them. A flow
// without a request in the clear is the CONNECT that brings it, or that it becomes: method CONNECT, the destination as
// host, no path. A request in the clear has its path without a query, as policy sees no other, and only the fields that
// Config.Headers names.
func (c *Client) question(r *policy.Request) (*authv3.CheckRequest, error) {
	a := &authv3.AttributeContext{
		Source:            &authv3.AttributeContext_Peer{Principal: r.Peer.String(), Address: addressOf(r.Source)},
		Destination:       &authv3.AttributeContext_Peer{Principal: r.Self.String(), Address: destinationOf(r)},
		ContextExtensions: extensionsOf(r),
		Request:           &authv3.AttributeContext_Request{Time: timestamppb.Now()},
	}
	if r.SNI != "" {
		a.TlsSession = &authv3.AttributeContext_TLSSession{Sni: r.SNI}
	}
	a.Request.Http = connectOf(r)
	if r.HTTP != nil {
		a.Request.Http = c.httpOf(r.HTTP)
	}
	h := a.Request.Http
	for _, one := range []struct{ what, text string }{{"method", h.Method}, {"path", h.Path}, {"host", h.Host}, {"server name of TLS", r.SNI}, {"destination", r.Host}} {
		if !utf8.ValidString(one.text) { // a replacement would be judged instead
			return nil, fmt.Errorf("the %s has bytes that are no UTF-8, and cannot be asked about", one.what)
		}
	}
	ask := &authv3.CheckRequest{Attributes: a}
	if n := proto.Size(ask); n > maxAskBytes {
		return nil, fmt.Errorf("the question would have %d bytes, and %d are the most; show it fewer headers", n, maxAskBytes)
	}
	return ask, nil
}

func addressOf(a netip.AddrPort) *corev3.Address {
	if !a.IsValid() {
		return nil
	}
	return socketAddress(a.Addr().Unmap().String(), a.Port())
}

// destinationOf is the address of the destination, or its name where that is not resolved here.
func destinationOf(r *policy.Request) *corev3.Address {
	switch {
	case r.Addr.IsValid():
		return socketAddress(r.Addr.String(), r.Port)
	case r.Host != "":
		return socketAddress(r.Host, r.Port)
	}
	return nil
}

func socketAddress(host string, port uint16) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: host, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}

// extensionsOf is what Envoy has no place for.
func extensionsOf(r *policy.Request) map[string]string {
	m := map[string]string{keyListener: r.Listener}
	if w := r.Workload; w != nil {
		m[keyWorkload], m[keyNamespace] = w.Name, w.Namespace
	}
	if r.Remote.IsValid() {
		m[keyRemote] = r.Remote.Unmap().String()
	}
	return m
}

// connectOf is a flow as the CONNECT that it is.
func connectOf(r *policy.Request) *authv3.AttributeContext_HttpRequest {
	host := r.Host
	if host == "" && r.Addr.IsValid() {
		host = r.Addr.String()
	}
	return &authv3.AttributeContext_HttpRequest{
		Method: http.MethodConnect, Host: net.JoinHostPort(host, strconv.Itoa(int(r.Port))), Protocol: "HTTP/2", Size: unknownSize,
	}
}

// unknownSize is HttpRequest.size of a request whose length nobody knows.
const unknownSize = -1

// httpOf is a request in the clear.
func (c *Client) httpOf(r *policy.HTTP) *authv3.AttributeContext_HttpRequest {
	h := &authv3.AttributeContext_HttpRequest{Method: r.Method, Path: r.Path, Host: r.Host, Size: unknownSize}
	for _, name := range c.headers {
		value, ok := r.Header(name)
		if !ok {
			continue
		}
		if h.Headers == nil {
			h.Headers = make(map[string]string)
		}
		// attribute_context.proto: "Non-UTF-8 characters will be replaced by "!"."
		h.Headers[name] = strings.ToValidUTF8(value, "!")
	}
	return h
}

// lowerNames are names of fields as AttributeContext has them: "All header keys must be lower-cased".
func lowerNames(names []string) []string {
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = strings.ToLower(name)
	}
	return list
}

// errClosed is why nothing is asked any more.
var errClosed = errors.New("the authorizer is being replaced")
