package policy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	apicel "k8s.io/apiserver/pkg/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"countersign/action"
)

// decisionBudget bounds what all conditions of one decision may cost together,
// in the units of celconfig.PerCallLimit, which bounds a single one. It is what
// the API server grants to all matchConditions of one object, a quarter of a second.
const decisionBudget = celconfig.RuntimeCELCostBudgetMatchConditions

// decisionTime bounds how long they take together, because costs say too little
// of long lists: cel-go's own bookkeeping of them takes the square of a list's
// length (interpreter/runtimecost.go, refValStack.drop).
const decisionTime = time.Second

// fromPreview are the variables that only a Preview can fill, fromNamespace
// that which only the Namespace can.
var (
	fromPreview   = []string{"object", "oldObject", "diff", "pods", "oldPods", "pss", "risks"}
	fromNamespace = []string{"namespaceObject"}
	others        = []string{"principal", "tool", "args", "action", "fields", "now"}
)

// condition is a compiled when.
type condition struct {
	program   cel.Program
	variables []string // that it mentions
	needs     Need
	loops     bool
}

func declare(name string, fields map[string]*apicel.DeclType) *apicel.DeclType {
	out := map[string]*apicel.DeclField{}
	for field, t := range fields {
		out[field] = apicel.NewDeclField(field, t, true, nil, nil)
	}
	return apicel.NewObjectType("countersign."+name, out)
}

// env is Kubernetes' own CEL environment, as ValidatingAdmissionPolicy has it,
// with our variables, declared with their types so that a misspelt field is
// found at load. Making it takes milliseconds, so it is made once.
var env = sync.OnceValues(func() (*cel.Env, error) {
	text, texts := apicel.StringType, apicel.NewListType(apicel.StringType, -1)
	labels := apicel.NewMapType(text, text, -1)
	principal := declare("Principal", map[string]*apicel.DeclType{
		"issuer": text, "subject": text, "username": text, "groups": texts, "client": text, "onBehalfOf": text,
	})
	request := declare("Action", map[string]*apicel.DeclType{
		"cluster": text, "verb": text, "verbs": texts, "group": text, "version": text, "resource": text, "kind": text,
		"subresource": text, "namespace": text, "name": text,
		"force": apicel.BoolType, "propagationPolicy": text, "gracePeriodSeconds": apicel.IntType,
	})
	change := declare("Change", map[string]*apicel.DeclType{"op": text, "path": text, "old": apicel.DynType, "new": apicel.DynType})
	pod := declare("Pod", map[string]*apicel.DeclType{
		"path": text, "spec": apicel.DynType, "containers": apicel.NewListType(apicel.DynType, -1), "secrets": texts,
	})
	failed := declare("Violation", map[string]*apicel.DeclType{"level": text, "check": text, "detail": text, "path": text})
	namespace := declare("Namespace", map[string]*apicel.DeclType{
		"metadata": declare("NamespaceMetadata", map[string]*apicel.DeclType{"name": text, "uid": text, "labels": labels, "annotations": labels, "creationTimestamp": text}),
		"spec":     declare("NamespaceSpec", map[string]*apicel.DeclType{"finalizers": texts}),
		"status":   declare("NamespaceStatus", map[string]*apicel.DeclType{"phase": text}),
	})
	set, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Extend(environment.VersionedOptions{
		IntroducedVersion: environment.DefaultCompatibilityVersion(),
		DeclTypes:         []*apicel.DeclType{principal, request, change, pod, failed, namespace},
		EnvOptions: []cel.EnvOption{
			cel.Variable("principal", principal.CelType()),
			cel.Variable("tool", cel.StringType),
			cel.Variable("args", cel.MapType(cel.StringType, cel.DynType)),
			cel.Variable("action", request.CelType()),
			cel.Variable("fields", cel.ListType(cel.StringType)),
			cel.Variable("now", cel.TimestampType),
			// Which kind of object it is, a rule does not say; null where there is none.
			cel.Variable("object", cel.DynType),
			cel.Variable("oldObject", cel.DynType),
			cel.Variable("diff", cel.ListType(change.CelType())),
			cel.Variable("pods", cel.ListType(pod.CelType())),
			cel.Variable("oldPods", cel.ListType(pod.CelType())),
			cel.Variable("pss", cel.ListType(failed.CelType())),
			cel.Variable("risks", cel.ListType(cel.StringType)),
			cel.Variable("namespaceObject", namespace.CelType()),
		},
	})
	if err != nil {
		return nil, err
	}
	return set.Env(environment.StoredExpressions)
})

func compileCondition(expression string) (*condition, error) {
	env, err := env()
	if err != nil {
		return nil, fmt.Errorf("making the CEL environment: %w", err)
	}
	checked, issues := env.Compile(expression)
	if issues.Err() != nil {
		var texts []string
		for _, e := range issues.Errors() {
			at := fmt.Sprintf("character %d", e.Location.Column()+1)
			if line := e.Location.Line(); line > 1 {
				at = fmt.Sprintf("line %d, %s", line, at)
			}
			texts = append(texts, "at "+at+": "+e.Message)
		}
		return nil, errors.New(strings.Join(texts, "; "))
	}
	if checked.OutputType() != cel.BoolType && checked.OutputType() != cel.DynType {
		return nil, fmt.Errorf("gives %s; it must give true or false", checked.OutputType())
	}
	c := &condition{}
	c.variables, c.loops = mentions(checked)
	for _, name := range fromPreview {
		if slices.Contains(c.variables, name) {
			c.needs |= NeedPreview
		}
	}
	for _, name := range fromNamespace {
		if slices.Contains(c.variables, name) {
			c.needs |= NeedNamespace
		}
	}
	// The environment brings the cost limit of a single admission expression.
	if c.program, err = env.Program(checked, cel.EvalOptions(cel.OptOptimize, cel.OptTrackCost), cel.InterruptCheckFrequency(celconfig.CheckFrequency)); err != nil {
		return nil, err
	}
	return c, nil
}

// mentions lists our variables that an expression names, and says whether it
// goes over a list. A macro's own variable of the same name counts as well: a
// Preview too many hurts nobody.
func mentions(checked *cel.Ast) (names []string, loops bool) {
	found := map[string]bool{}
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.IdentKind:
			found[strings.TrimPrefix(e.AsIdent(), ".")] = true
		case ast.ComprehensionKind:
			loops = true
		}
	}))
	return slices.DeleteFunc(slices.Concat(others, fromNamespace, fromPreview), func(name string) bool { return !found[name] }), loops
}

// eval answers whether the condition holds. It takes what it cost from the budget.
func (c *condition) eval(f *facts, b *budget) (bool, error) {
	if b.spent > decisionBudget {
		return false, errors.New("the conditions before it used up the cost limit of a decision")
	}
	var value ref.Val
	var details *cel.EvalDetails
	var err error
	if c.loops {
		value, details, err = c.program.ContextEval(b.time(), f)
	} else {
		value, details, err = c.program.Eval(f)
	}
	if details != nil && details.ActualCost() != nil {
		b.spent += *details.ActualCost()
	}
	if err != nil {
		return false, safe(err)
	}
	holds, ok := value.Value().(bool)
	if !ok {
		return false, fmt.Errorf("gave %v instead of true or false", value.Type())
	}
	return holds, nil
}

// harmless are the beginnings of CEL errors that name keys, types and limits.
// Others repeat the value that they failed on, which may be a secret one, and
// the text goes to the agent and into the log.
var harmless = []string{"no such key", "no such attribute", "no such overload", "operation cancelled", "actual cost limit exceeded", notAPod, tooManyPods}

func safe(err error) error {
	if strings.HasPrefix(err.Error(), "operation interrupted") {
		return fmt.Errorf("its condition took too long: a decision may take %s", decisionTime)
	}
	for _, beginning := range harmless {
		if strings.HasPrefix(err.Error(), beginning) {
			return err
		}
	}
	return errors.New("its condition failed on a value")
}

// facts are what the conditions of one decision can name. They are worked out
// when the first condition asks for them, and once. They are CEL's activation.
type facts struct {
	req *Request
	// enforced and shadow are what conditions may still take; those of rules in
	// mode shadow take nothing from the others.
	enforced, shadow budget

	values        map[string]any
	before, after podFacts
	found         []string // risks, nil until they are looked for
}

// budget is what conditions have taken of decisionBudget and decisionTime.
type budget struct {
	spent  uint64
	ctx    context.Context
	cancel context.CancelFunc
}

// time begins to run when the first condition asks for it.
func (b *budget) time() context.Context {
	if b.ctx == nil {
		b.ctx, b.cancel = context.WithTimeout(context.Background(), decisionTime)
	}
	return b.ctx
}

func (f *facts) close() {
	for _, b := range []*budget{&f.enforced, &f.shadow} {
		if b.cancel != nil {
			b.cancel()
		}
	}
}

// Parent implements cel.Activation.
func (f *facts) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation.
func (f *facts) ResolveName(name string) (any, bool) {
	switch name {
	case "tool":
		return f.req.Tool, true
	case "now":
		return f.req.Now, true
	}
	if v, ok := f.values[name]; ok {
		return v, true
	}
	v, ok := f.make(name)
	if ok {
		if f.values == nil {
			f.values = make(map[string]any, 8)
		}
		f.values[name] = v
	}
	return v, ok
}

func (f *facts) make(name string) (any, bool) {
	p, a, preview := f.req.Principal, f.req.Action, f.req.Preview
	if preview == nil {
		preview = &action.Preview{}
	}
	switch name {
	case "principal":
		return map[string]any{
			"issuer": p.Issuer, "subject": p.Subject, "username": p.Username,
			"groups": p.Groups, "client": p.Client, "onBehalfOf": p.OnBehalfOf,
		}, true
	case "args":
		if f.req.Args == nil {
			return map[string]any{}, true
		}
		return f.req.Args, true
	case "action":
		grace := int64(-1)
		if a.Options.GracePeriodSeconds != nil {
			grace = *a.Options.GracePeriodSeconds
		}
		return map[string]any{
			"cluster": a.Cluster, "verb": a.Verb, "verbs": a.Verbs(), "group": a.Resource.Group, "version": a.Resource.Version,
			"resource": a.Resource.Resource, "kind": a.Resource.Kind, "subresource": a.Subresource,
			"namespace": a.Namespace, "name": a.Name,
			"force": a.Options.Force, "propagationPolicy": a.Options.PropagationPolicy, "gracePeriodSeconds": grace,
		}, true
	case "fields":
		return notNil(a.Fields()), true
	case "namespaceObject":
		return orNull(f.req.Namespace), true
	case "object":
		return orNull(preview.Result), true
	case "oldObject":
		return orNull(preview.Live), true
	case "diff":
		return diffValues(preview.Diff), true
	case "pods":
		return f.pods().values(), true
	case "oldPods":
		return f.oldPods().values(), true
	case "pss":
		all, err := f.pods().check()
		if err != nil {
			return types.WrapErr(err), true
		}
		return violationValues(all), true
	case "risks":
		return notNil(f.risks()), true
	}
	return nil, false
}

func (f *facts) pods() *podFacts {
	if f.req.Preview != nil {
		f.after.look(f.req.Preview.Result)
	}
	return &f.after
}

func (f *facts) oldPods() *podFacts {
	if f.req.Preview != nil {
		f.before.look(f.req.Preview.Live)
	}
	return &f.before
}

func orNull(object map[string]any) any {
	if object == nil {
		return nil
	}
	return object
}

func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func diffValues(diff []action.Change) []map[string]any {
	out := make([]map[string]any, len(diff))
	for i, c := range diff {
		out[i] = map[string]any{"op": c.Op, "path": c.Path, "old": c.Old, "new": c.New}
	}
	return out
}
