package main

import (
	"context"
	"errors"
	"fmt"

	"culvert/bench/proc"
)

// The ways from an entry to an exit that are compared, as values and figures call them.
const (
	connect   = "CONNECT"
	post      = "POST with x-tun"
	postPlain = "POST with x-tun, no TLS around it" // as behind a balancer, which has ended it
)

// takeXTun measures an entry and an exit that speak CONNECT, and the same where the entry takes the exit for a load
// balancer of others: POST with x-tun, and mutual TLS from end to end inside.
func takeXTun(ctx context.Context, s *site, size *size) (values, error) {
	v := make(values)
	var faults []error
	for _, form := range []string{connect, post, postPlain} {
		if err := s.tunnels(ctx, form, size, v); err != nil {
			faults = append(faults, fmt.Errorf("%s: %w", form, err))
		}
	}
	return v, errors.Join(faults...)
}

func (s *site) tunnels(ctx context.Context, form string, size *size, v values) error {
	at, err := addrs(2)
	if err != nil {
		return err
	}
	entry, exit := at[0], at[1]
	hop, listener := "", "kind: hbone"
	switch form {
	case post:
		hop = ", tun: POST, authority: " + askedHost + ", tls: {roots: roots.pem}"
		listener = "kind: x-tun, xTun: {cert: edge.pem, key: edge.key}"
	case postPlain:
		hop = ", tun: POST, authority: " + askedHost + ", tls: {none: true}"
		listener = "kind: x-tun, xTun: {}"
	}
	tokens := ""
	if form != connect {
		hop += ", token: {sign: true}, inner: {identities: [" + identityOf("exit") + "]}"
		tokens = "tokens: {issuers: [{issuer: " + identityOf("entry") + ", anyAudience: true, keys: [{file: entry.pem}]}]}\n"
	}
	g := new(proc.Group)
	defer g.Stop()
	if err := s.file(g, "exit", fmt.Sprintf("%slisteners: [{name: mesh, address: %q, %s}]\nroutes: [{destinations: [local]}]\n", tokens, exit, listener)); err != nil {
		return err
	}
	if err := s.file(g, "entry", fmt.Sprintf("listeners: [{name: app, kind: forward, address: %q, to: %q}]\nhops: {far: {address: %q%s}}\nroutes: [{via: [far]}]\n",
		entry, s.target.Addr(), exit, hop)); err != nil {
		return err
	}
	return s.carry(ctx, form, g, entry, size, v)
}

// identityOf is the SPIFFE ID that package identity gives to a name.
func identityOf(name string) string { return "spiffe://cluster.local/ns/default/sa/" + name }
