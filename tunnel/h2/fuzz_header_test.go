package h2

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http/httpguts"
)

// FuzzHeaderBlock: a list of fields that is accepted as a request, a response or trailers has nothing in it that
// RFC 9113, sections 8.2 and 8.3, forbids, as far as x/net's guards see; and what was accepted once is accepted
// when it is sent on. The text has a field a line, name and value parted by a tab.
func FuzzHeaderBlock(f *testing.F) {
	for _, s := range []string{
		":method\tCONNECT\n:authority\ta:1\nbaggage\tk=v",
		":method\tGET\n:scheme\thttps\n:authority\ta\n:path\t/\ncontent-length\t1\ncontent-length\t1\nhost\tA",
		":method\tCONNECT\n:authority\ta:1\n:protocol\twebsocket\n:scheme\thttps\n:path\t/",
		":status\t200\nx\t a", ":status\t099", ":status\t103\nlink\tx", "grpc-status\t0\nte\ttrailers", "Upper\tx",
		"connection\tclose", ":method\tGET\nx\ty\n:path\t/", "x\t\x00", "\tempty", ":x\ty", "content-length\t+1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var fields []Field
		for line := range strings.SplitSeq(text, "\n") {
			name, value, _ := strings.Cut(line, "\t")
			fields = append(fields, Field{Name: name, Value: value})
		}
		for _, kind := range []blockKind{requestBlock, responseBlock, trailerBlock} {
			var b headerBlock
			for _, x := range fields {
				b.add(x)
			}
			if b.checkKind(kind) != "" {
				continue
			}
			checkAccepted(t, kind, fields)
			if kind == trailerBlock {
				continue
			}
			if reason := b.h.check(); reason != "" {
				t.Errorf("%q is accepted and cannot be sent on: %s", fields, reason)
			}
			var again headerBlock
			b.h.each(again.add)
			if again.checkKind(kind) != "" || !slices.Equal(again.h.Fields, b.h.Fields) || again.h.Authority != b.h.Authority {
				t.Errorf("%q comes out as %+v", fields, again.h)
			}
		}
	})
}

func checkAccepted(t *testing.T, kind blockKind, fields []Field) {
	t.Helper()
	regular, seen := false, map[string]bool{}
	for _, x := range fields {
		if !httpguts.ValidHeaderFieldValue(x.Value) || strings.Trim(x.Value, " \t") != x.Value {
			t.Errorf("the value %q is accepted", x.Value)
		}
		if strings.HasPrefix(x.Name, ":") {
			if regular || seen[x.Name] || kind == trailerBlock {
				t.Errorf("%q: %s is late, twice or in trailers", fields, x.Name)
			}
			seen[x.Name] = true
			continue
		}
		regular = true
		if !httpguts.ValidHeaderFieldName(x.Name) || strings.ToLower(x.Name) != x.Name {
			t.Errorf("the name %q is accepted", x.Name)
		}
		switch x.Name {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			t.Errorf("the field %s is accepted", x.Name)
		}
	}
}
