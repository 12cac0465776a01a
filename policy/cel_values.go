package policy

import (
	"fmt"
	"net/netip"
	"reflect"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"
)

// celHeadersType is the type of request.headers: NAME in it, and it[NAME]. It cannot be gone
// through. It is immutable: CEL reads types only.
var celHeadersType = cel.ObjectType("headers", traits.IndexerType|traits.ContainerType)

// celHeaders are the fields of a request.
type celHeaders struct{ http *HTTP }

// Get returns the values of a field joined by commas, and an error for one that is not there, as a map of CEL does.
func (h celHeaders) Get(index ref.Val) ref.Val {
	name, ok := index.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(index)
	}
	value, there := h.http.Header(strings.ToLower(string(name)))
	if !there {
		return types.NewErr("no such field: %s", string(name))
	}
	return types.String(value)
}

// Contains tells whether there is a field of that name.
func (h celHeaders) Contains(index ref.Val) ref.Val {
	name, ok := index.(types.String)
	if !ok {
		return types.MaybeNoSuchOverloadErr(index)
	}
	_, there := h.http.Header(strings.ToLower(string(name)))
	return types.Bool(there)
}

// ConvertToNative is not possible.
func (h celHeaders) ConvertToNative(to reflect.Type) (any, error) {
	return nil, fmt.Errorf("headers cannot be %v", to)
}

// ConvertToType is not possible.
func (h celHeaders) ConvertToType(to ref.Type) ref.Val {
	return types.NewErr("headers cannot be %s", to.TypeName())
}

// Equal is not possible.
func (h celHeaders) Equal(ref.Val) ref.Val { return types.NewErr("headers cannot be compared") }

// Type is celHeadersType.
func (h celHeaders) Type() ref.Type { return celHeadersType }

// Value is the request.
func (h celHeaders) Value() any { return h.http }

// celInCIDR is ADDRESS.inCIDR(RANGE).
func celInCIDR(address, in ref.Val) ref.Val {
	a, isText := address.(types.String)
	b, areTexts := in.(types.String)
	if !isText || !areTexts {
		return types.MaybeNoSuchOverloadErr(address)
	}
	prefix, fault := parseBlock(string(b))
	if fault != "" {
		return types.NewErr("%q %s", string(b), fault)
	}
	addr, err := netip.ParseAddr(string(a))
	if err != nil {
		return types.NewErr("%q is no address", string(a))
	}
	return types.Bool(prefix.Contains(addr.Unmap().WithZone("")))
}

// celCIDRLiterals finds ranges that are none before they are asked for.
type celCIDRLiterals struct{}

// Name of the validator.
func (celCIDRLiterals) Name() string { return "culvert.validate.cidr" }

// Validate looks at each inCIDR with a range that is written out.
func (celCIDRLiterals) Validate(_ *cel.Env, _ cel.ValidatorConfig, a *ast.AST, issues *cel.Issues) {
	for _, call := range ast.MatchDescendants(ast.NavigateAST(a), ast.FunctionMatcher("inCIDR")) {
		for _, argument := range call.AsCall().Args() {
			if argument.Kind() != ast.LiteralKind {
				continue
			}
			if text, ok := argument.AsLiteral().(types.String); ok {
				if _, fault := parseBlock(string(text)); fault != "" {
					issues.ReportErrorAtID(argument.ID(), "%q %s", string(text), fault)
				}
			}
		}
	}
}
