package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"countersign/action"
	"countersign/strictyaml"
)

// Who shares a limit's budget.
const (
	// ByPrincipal gives each principal a budget of its own.
	ByPrincipal = "principal"
	// ByTool gives each tool one, whoever calls it.
	ByTool = "tool"
	// ByRule is one budget for all that the limit matches.
	ByRule = "rule"
	// ByCall gives one to each repetition of a principal's identical call, which
	// is counted before it is looked at: also when it is refused or makes no sense.
	ByCall = "call"
)

// limitSpec is one limit as written: so many requests of a kind in a while.
type limitSpec struct {
	// Name is unique among rules and limits.
	Name string `yaml:"name"`
	// Match says which requests count, as in a rule that restricts. A call
	// counts once for each of its requests that matches.
	Match matchSpec `yaml:"match"`
	// Calls is how many are let through in Per: at once, or spread.
	Calls *strictyaml.Int `yaml:"calls"`
	Per   time.Duration   `yaml:"per"`
	// By says who shares the budget: principal (when absent), tool, rule or call.
	By string `yaml:"by"`
	// Message is what a refused caller is told beside the numbers.
	Message string `yaml:"message"`
}

// Limit is a budget that a request draws on.
type Limit struct {
	Name    string
	Calls   int
	Per     time.Duration
	By      string
	Message string
	// Shadow limits are counted and recorded, and refuse nothing.
	Shadow bool
}

type limit struct {
	Limit
	match match
}

// CallLimits are the budgets by call that a principal's calls of a tool draw on.
func (s *Set) CallLimits(p *action.Principal, tool string) []Limit {
	var out []Limit
	for _, l := range s.limits {
		if l.By == ByCall && l.match.caller(p, tool) == "" {
			out = append(out, l.Limit)
		}
	}
	return out
}

// Limits are the budgets, but for those by call, that one Action draws on. They
// are counted by gate, because they change and a Set does not.
func (s *Set) Limits(p *action.Principal, tool string, a *action.Action) []Limit {
	if len(s.limits) == 0 {
		return nil
	}
	t := targetOf(&Request{Principal: p, Tool: tool, Action: a})
	var out []Limit
	for _, l := range s.limits {
		if l.By != ByCall && l.match.mismatch(&t, false) == "" {
			out = append(out, l.Limit)
		}
	}
	return out
}

func compileLimit(spec limitSpec) (*limit, []mistake) {
	var mistakes []mistake
	bad := func(text string, path ...any) { mistakes = append(mistakes, mistake{path, text}) }
	l := &limit{Limit: Limit{Name: spec.Name, Per: spec.Per, By: spec.By, Message: spec.Message}}
	if spec.Calls == nil || *spec.Calls < 1 {
		bad("calls is missing or less than 1: how many are let through", "calls")
	} else {
		l.Calls = int(*spec.Calls)
	}
	if spec.Per <= 0 {
		bad(`per is missing or not more than 0: a duration such as "10m"`, "per")
	}
	if l.By == "" {
		l.By = ByPrincipal
	}
	if all := []string{ByPrincipal, ByTool, ByRule, ByCall}; !slices.Contains(all, l.By) {
		bad(fmt.Sprintf("by is %q; one of %s", l.By, strings.Join(all, ", ")), "by")
	}
	if m := spec.Match; l.By == ByCall && len(m.Clusters)+len(m.Verbs)+len(m.Resources)+len(m.Subresources)+len(m.Namespaces)+len(m.Names) > 0 {
		bad("a limit by call takes principals and tools only: it is counted before it is known what the call would do", "match")
	}
	if spec.Match.NamespaceSelector != nil {
		bad("a limit cannot have a namespaceSelector: it is counted by what the request itself says", "match", "namespaceSelector")
		spec.Match.NamespaceSelector = nil
	}
	l.match, _ = compileMatch(spec.Match)
	return l, append(mistakes, checkMatch(spec.Match)...)
}
