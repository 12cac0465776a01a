package main

import (
	"errors"
	"net/http"
	"net/http/httputil"
	"net/url"
)

// proxyIdle is more idle connections to the backend than any run has requests at once.
const proxyIdle = 1024

// serveProxy is `roles proxy LISTEN SECURE TO CERT KEY`: a bare httputil.ReverseProxy for HTTP/1.1 and HTTP/2, without TLS
// and with it. It returns when it cannot listen.
func serveProxy(args []string) error {
	if len(args) != 5 {
		return errors.New("usage: roles proxy LISTEN SECURE TO CERT KEY")
	}
	listen, secure, to := args[0], args[1], args[2]
	backend := &url.URL{Scheme: "http", Host: to}
	transport := &http.Transport{MaxIdleConns: proxyIdle, MaxIdleConnsPerHost: proxyIdle, DisableCompression: true}
	proxy := &httputil.ReverseProxy{
		Transport: transport,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(backend)
			r.SetXForwarded()
		},
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	plain, failed := &http.Server{Addr: listen, Handler: proxy, Protocols: protocols}, make(chan error, 2)
	go func() { failed <- plain.ListenAndServe() }()                                                           // ends with the process
	go func() { failed <- (&http.Server{Addr: secure, Handler: proxy}).ListenAndServeTLS(args[3], args[4]) }() // as above
	return <-failed
}
