package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"

	"countersign/action"
)

// fromPreview are the variables that only a Preview can fill.
var fromPreview = []string{"object", "oldObject", "diff"}

// condition is a compiled when.
type condition struct {
	program      cel.Program
	needsPreview bool
}

// env is Kubernetes' own CEL environment, as ValidatingAdmissionPolicy has it,
// with our variables. Making it takes milliseconds, so it is made once.
var env = sync.OnceValues(func() (*cel.Env, error) {
	object := cel.MapType(cel.StringType, cel.DynType)
	set, err := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion()).Extend(environment.VersionedOptions{
		IntroducedVersion: environment.DefaultCompatibilityVersion(),
		EnvOptions: []cel.EnvOption{
			cel.Variable("principal", object),
			cel.Variable("tool", cel.StringType),
			cel.Variable("args", object),
			cel.Variable("action", object),
			// null where there is no such object, so dyn rather than a map.
			cel.Variable("object", cel.DynType),
			cel.Variable("oldObject", cel.DynType),
			cel.Variable("diff", cel.ListType(object)),
			cel.Variable("now", cel.TimestampType),
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
			texts = append(texts, fmt.Sprintf("at character %d: %s", e.Location.Column()+1, e.Message))
		}
		return nil, errors.New(strings.Join(texts, "; "))
	}
	if checked.OutputType() != cel.BoolType && checked.OutputType() != cel.DynType {
		return nil, fmt.Errorf("gives %s; it must give true or false", checked.OutputType())
	}
	c := &condition{needsPreview: mentions(checked, fromPreview)}
	// The limit is the one of a single admission expression in Kubernetes.
	if c.program, err = env.Program(checked, cel.CostLimit(celconfig.PerCallLimit), cel.EvalOptions(cel.OptOptimize)); err != nil {
		return nil, err
	}
	return c, nil
}

func mentions(checked *cel.Ast, names []string) bool {
	found := false
	ast.PreOrderVisit(checked.NativeRep().Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() == ast.IdentKind && slices.Contains(names, strings.TrimPrefix(e.AsIdent(), ".")) {
			found = true
		}
	}))
	return found
}

func (c *condition) eval(vars map[string]any) (bool, error) {
	value, _, err := c.program.Eval(vars)
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
var harmless = []string{"no such key", "no such attribute", "no such overload", "operation cancelled", "actual cost limit exceeded"}

func safe(err error) error {
	for _, beginning := range harmless {
		if strings.HasPrefix(err.Error(), beginning) {
			return err
		}
	}
	return errors.New("its condition failed on a value")
}

// variables are what a condition can name. The values are decoded JSON or made
// to look like it.
func variables(req Request) map[string]any {
	p, a := req.Principal, req.Action
	vars := map[string]any{
		"principal": map[string]any{
			"issuer": p.Issuer, "subject": p.Subject, "username": p.Username,
			"groups": p.Groups, "client": p.Client, "onBehalfOf": p.OnBehalfOf,
		},
		"tool": req.Tool,
		"args": req.Args,
		"action": map[string]any{
			"cluster": a.Cluster, "verb": a.Verb, "verbs": a.Verbs(), "group": a.Resource.Group, "version": a.Resource.Version,
			"resource": a.Resource.Resource, "kind": a.Resource.Kind, "subresource": a.Subresource,
			"namespace": a.Namespace, "name": a.Name,
		},
		"object":    nil,
		"oldObject": nil,
		"diff":      []map[string]any{},
		"now":       req.Now,
	}
	if req.Args == nil {
		vars["args"] = map[string]any{}
	}
	if req.Preview != nil {
		if req.Preview.Result != nil {
			vars["object"] = req.Preview.Result
		}
		if req.Preview.Live != nil {
			vars["oldObject"] = req.Preview.Live
		}
		vars["diff"] = diffValues(req.Preview.Diff)
	}
	return vars
}

func diffValues(diff []action.Change) []map[string]any {
	out := make([]map[string]any, len(diff))
	for i, c := range diff {
		out[i] = map[string]any{"op": c.Op, "path": c.Path, "old": c.Old, "new": c.New}
	}
	return out
}
