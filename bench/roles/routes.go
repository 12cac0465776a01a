package main

import (
	"context"
	"errors"
	"fmt"
)

// A few routes are compared with many; this is what values and figures call both.
const (
	countFew              = 10
	fewRoutes, manyRoutes = "10 routes", "many routes"
)

// takeRoutes measures how many requests a second go through an ingress with few routes and with many, of which half are
// for other hosts and half for other paths of the host that is asked for.
func takeRoutes(ctx context.Context, s *site, size *size) (values, error) {
	b, err := newBackend()
	if err != nil {
		return nil, err
	}
	defer b.close()
	at, err := addrs(2)
	if err != nil {
		return nil, err
	}
	few, many := &front{name: fewRoutes, plain: at[0]}, &front{name: manyRoutes, plain: at[1]}
	defer few.Stop()
	defer many.Stop()
	if err := errors.Join(
		s.file(&few.Group, "entry", ingressConfig(few.plain, "", b.addr(), countFew)),
		s.file(&many.Group, "exit", ingressConfig(many.plain, "", b.addr(), size.routes)),
	); err != nil {
		return nil, err
	}
	v := make(values)
	for _, f := range []*front{few, many, many, few} { // in turns, so that what else the machine does meets both
		got, err := f.answer(ctx, s, &manners[0], 0, size)
		if err != nil {
			return v, fmt.Errorf("%s: %w", f.name, err)
		}
		v[requests(f.name, h1)] += got.perSecond / 2
	}
	return v, nil
}
