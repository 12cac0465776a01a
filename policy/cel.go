package policy

import (
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// Limits of expressions. A figure of cost is what CEL counts: about one for each step, and one for ten characters of a text.
const (
	// maxCELBytes is far above what a person reads at a glance.
	maxCELBytes = 4096
	// maxCELNesting keeps the parser's stack small.
	maxCELNesting = 32
	// maxCELCost is what an expression may cost at worst, as far as that is known before. A list of all claims of a large
	// token may be gone through, and one inside of another may not.
	maxCELCost = 100_000
	// maxCELSteps is what it may cost when it runs: a few milliseconds.
	maxCELSteps = 100_000
	// maxCELValue is how long a text, a list or a mapping of a request is taken to be at most: a token and a path have 8 KiB.
	maxCELValue = 8192
	// maxCELRegex is how large a regular expression may be when it is compiled.
	maxCELRegex = 10_000
)

// celVariables are what an expression may ask for. What the hop cannot see has no value, and what needs it is not known. It is
// never written.
var celVariables = []*celVariable{
	{"peer.principal", cel.StringType, func(v *view) ref.Val { return types.String(v.principal) }},
	{"peer.trust_domain", cel.StringType, func(v *view) ref.Val { return types.String(v.Peer.TrustDomain()) }},
	{"peer.namespace", cel.StringType, func(v *view) ref.Val { return types.String(v.Peer.Namespace()) }},
	{"peer.service_account", cel.StringType, func(v *view) ref.Val { return types.String(v.Peer.ServiceAccount()) }},
	{"peer.key", cel.StringType, func(v *view) ref.Val {
		if !v.Peer.IsKey() {
			return types.String("")
		}
		return types.String(v.principal)
	}},
	{"source.ip", cel.StringType, func(v *view) ref.Val { return celAddr(v.address(ofSourceIP)) }},
	{"source.port", cel.IntType, func(v *view) ref.Val {
		if v.Source.Port() == 0 {
			return nil
		}
		return types.Int(v.Source.Port())
	}},
	{"remote.ip", cel.StringType, func(v *view) ref.Val { return celAddr(v.address(ofRemoteIP)) }},
	{celDestinationIP, cel.StringType, func(v *view) ref.Val { return celAddr(v.Addr) }},
	{"destination.port", cel.IntType, func(v *view) ref.Val { return types.Int(v.Port) }},
	{"destination.host", cel.StringType, func(v *view) ref.Val { return celSeen(v.Host, v.Host != "") }},
	{"sni", cel.StringType, func(v *view) ref.Val { return celSeen(v.text(ofSNI, "")) }},
	{"listener", cel.StringType, func(v *view) ref.Val { return types.String(v.Listener) }},
	{"request.method", cel.StringType, func(v *view) ref.Val { return celSeen(v.text(ofMethod, "")) }},
	{"request.path", cel.StringType, func(v *view) ref.Val { return celSeen(v.text(ofPath, "")) }},
	{"request.host", cel.StringType, func(v *view) ref.Val {
		if v.HTTP == nil {
			return nil
		}
		return types.String(v.HTTP.Host)
	}},
	{"request.headers", celHeadersType, func(v *view) ref.Val {
		if v.HTTP == nil {
			return nil
		}
		return celHeaders{v.HTTP}
	}},
	{"token.issuer", cel.StringType, celToken(func(t *Token) ref.Val { return types.String(t.Issuer) })},
	{"token.subject", cel.StringType, celToken(func(t *Token) ref.Val { return types.String(t.Subject) })},
	{"token.audiences", cel.ListType(cel.StringType), celToken(func(t *Token) ref.Val { return types.NewStringList(types.DefaultTypeAdapter, t.Audiences) })},
	{"token.claims", cel.MapType(cel.StringType, cel.DynType), celToken(func(t *Token) ref.Val {
		return types.NewStringInterfaceMap(types.DefaultTypeAdapter, t.Claims)
	})},
	{"workload.name", cel.StringType, celWorkload(func(w *Workload) ref.Val { return types.String(w.Name) })},
	{"workload.namespace", cel.StringType, celWorkload(func(w *Workload) ref.Val { return types.String(w.Namespace) })},
	{"workload.labels", cel.MapType(cel.StringType, cel.StringType), celWorkload(func(w *Workload) ref.Val {
		return types.NewStringStringMap(types.DefaultTypeAdapter, w.Labels)
	})},
	{"time", cel.TimestampType, func(v *view) ref.Val {
		if v.Time.IsZero() {
			return nil
		}
		return types.Timestamp{Time: v.Time}
	}},
}

// celDestinationIP is what is not known yet of a destination that will be resolved.
const celDestinationIP = "destination.ip"

// celVariable is something of a request; value returns nil where the hop cannot see it.
type celVariable struct {
	name  string
	kind  *cel.Type
	value func(v *view) ref.Val
}

func celSeen(s string, seen bool) ref.Val {
	if !seen {
		return nil
	}
	return types.String(s)
}

func celAddr(a netip.Addr) ref.Val {
	if !a.IsValid() {
		return nil
	}
	return types.String(a.Unmap().WithZone("").String())
}

// celToken reads a token: of a request in the clear without one everything is empty.
func celToken(value func(*Token) ref.Val) func(*view) ref.Val {
	none := &Token{}
	return func(v *view) ref.Val {
		switch {
		case v.Token != nil:
			return value(v.Token)
		case v.HTTP != nil:
			return value(none)
		}
		return nil
	}
}

func celWorkload(value func(*Workload) ref.Val) func(*view) ref.Val {
	return func(v *view) ref.Val {
		if v.Workload == nil {
			return nil
		}
		return value(v.Workload)
	}
}

// celActivation gives the values of a request to an expression.
type celActivation struct {
	v       view // copies, so that those of a decision without expressions stay off the heap
	request Request
	lookup  map[string]*celVariable
}

// ResolveName returns a value; an error where the hop cannot see it.
func (a *celActivation) ResolveName(name string) (any, bool) {
	one := a.lookup[name]
	if one == nil {
		return nil, false
	}
	if value := one.value(&a.v); value != nil {
		return value, true
	}
	return celUnseen, true
}

// Parent is nil.
func (a *celActivation) Parent() cel.Activation { return nil }

// celUnseen is what an attribute is that a hop cannot see; immutable, as it has no exported field and no method that writes.
var celUnseen = types.NewErr("this hop cannot see it").(*types.Err)

// celCompiler makes programs of expressions.
type celCompiler struct {
	env    *cel.Env
	lookup map[string]*celVariable
	made   map[string]*celProgram // by their text
}

// celProgram is an expression that can be tried.
type celProgram struct {
	program cel.Program
	lookup  map[string]*celVariable
	byAddr  bool // it asks for the address of the destination
}

func newCELCompiler() (*celCompiler, error) {
	c := &celCompiler{lookup: make(map[string]*celVariable), made: make(map[string]*celProgram)}
	options := []cel.EnvOption{
		cel.ParserExpressionSizeLimit(maxCELBytes), cel.ParserRecursionLimit(maxCELNesting), cel.RegexProgramSizeLimit(maxCELRegex), cel.DefaultUTCTimeZone(true),
		cel.Function(operators.Index, cel.Overload("index_headers", []*cel.Type{celHeadersType, cel.StringType}, cel.StringType)),
		cel.Function(operators.In, cel.Overload("in_headers", []*cel.Type{cel.StringType, celHeadersType}, cel.BoolType)),
		cel.Function("inCIDR", cel.MemberOverload("string_in_cidr", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType, cel.BinaryBinding(celInCIDR))),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateDurationLiterals(), celCIDRLiterals{}),
	}
	for _, one := range celVariables {
		c.lookup[one.name] = one
		options = append(options, cel.Variable(one.name, one.kind))
	}
	var err error
	c.env, err = cel.NewEnv(options...)
	return c, err
}

// CELError is what is wrong with an expression, and where in it.
type CELError struct {
	// Line and Column in the expression, from 1; 0 is all of it.
	Line, Column int
	// Problem says what is wrong.
	Problem string
}

// Error returns place and problem on one line.
func (e *CELError) Error() string {
	switch {
	case e.Line == 0:
		return e.Problem
	case e.Line == 1:
		return fmt.Sprintf("column %d of the expression: %s", e.Column, e.Problem)
	}
	return fmt.Sprintf("line %d, column %d of the expression: %s", e.Line, e.Column, e.Problem)
}

// compile makes the program of an expression.
func (c *celCompiler) compile(text string) (*celProgram, *CELError) {
	if p := c.made[text]; p != nil {
		return p, nil
	}
	if len(text) > maxCELBytes {
		return nil, &CELError{Problem: fmt.Sprintf("is longer than %d bytes", maxCELBytes)}
	}
	ast, issues := c.env.Compile(text)
	if errs := issues.Errors(); len(errs) > 0 {
		first := errs[0]
		e := &CELError{Line: first.Location.Line(), Column: first.Location.Column() + 1, Problem: strings.ReplaceAll(first.Message, " (in container '')", "")}
		if strings.HasPrefix(first.Message, "undeclared reference") {
			e.Problem += "; known are " + celNames()
		}
		return nil, e
	}
	if kind := ast.OutputType(); !kind.IsExactType(cel.BoolType) {
		return nil, &CELError{Problem: fmt.Sprintf("is of type %s; it should be true or false (bool)", cel.FormatCELType(kind))}
	}
	cost, err := c.env.EstimateCost(ast, celCosts{})
	if err != nil {
		return nil, &CELError{Problem: err.Error()}
	}
	if cost.Max > maxCELCost {
		return nil, &CELError{Problem: fmt.Sprintf("may cost %s steps; at most %d are let, so compare with fewer values, or go through one list only", celCost(cost.Max), maxCELCost)}
	}
	program, err := c.env.Program(ast, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCELSteps))
	if err != nil {
		return nil, &CELError{Problem: err.Error()}
	}
	p := &celProgram{program: program, lookup: c.lookup}
	for _, to := range ast.NativeRep().ReferenceMap() {
		p.byAddr = p.byAddr || to.Name == celDestinationIP
	}
	c.made[text] = p
	return p, nil
}

func celCost(n uint64) string {
	if n == math.MaxUint64 {
		return "any number of"
	}
	return fmt.Sprint(n)
}

func celNames() string {
	var names []string
	for _, one := range celVariables {
		names = append(names, one.name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// holds tries the expression. What fails is not known.
func (p *celProgram) holds(v *view) truth {
	a := &celActivation{request: *v.Request, lookup: p.lookup}
	a.v = newView(&a.request) // not a copy of v, as then what v points to would be taken to be kept
	value, _, err := p.program.Eval(a)
	if err == nil {
		if is, ok := value.(types.Bool); ok {
			return truthOf(bool(is))
		}
	}
	if p.byAddr && v.Unresolved && !v.Addr.IsValid() {
		return v.later
	}
	return unknown
}

// celCosts tells how large values of a request may be.
type celCosts struct{}

// EstimateSize bounds what is not written in the expression.
func (celCosts) EstimateSize(n checker.AstNode) *checker.SizeEstimate {
	if n.ComputedSize() != nil {
		return nil
	}
	return &checker.SizeEstimate{Min: 0, Max: maxCELValue}
}

// EstimateCallCost leaves it to CEL.
func (celCosts) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}
