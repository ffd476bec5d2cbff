package configs_test

import (
	"os"
	"path/filepath"
	"testing"

	"countersign/action"
	"countersign/configs"
	"countersign/kube"
	"countersign/policy"
	"countersign/tools"
	"countersign/trial"
)

// Every example that is shipped loads, with its policy, as it stands.
func TestExamplesLoad(t *testing.T) {
	for _, file := range matching(t, "*.yaml") {
		c, err := configs.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := policy.Load(os.DirFS(c.Policy), known(c)); err != nil {
			t.Errorf("%s: its policy in %s: %v", file, c.Policy, err)
		}
	}
}

// Every policy that is shipped loads under the shipped example, has no rule
// that another one makes void, and says what its own tests expect.
func TestPolicies(t *testing.T) {
	known := known(example(t))
	for _, folder := range matching(t, "policy/*") {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			set, err := policy.Load(os.DirFS(folder), known)
			if err != nil {
				t.Fatal(err)
			}
			for _, warning := range set.Warnings() {
				t.Error(warning)
			}
			cases, err := trial.Cases(os.DirFS(folder))
			if err != nil {
				t.Fatal(err)
			}
			try(t, set, known, cases)
		})
	}
}

// try decides cases by a set, and reports what is not as they expect.
func try(t *testing.T, set *policy.Set, known policy.Known, cases []trial.Case) {
	t.Helper()
	if len(cases) == 0 {
		t.Error("no case tests it")
	}
	world := trial.New(set, known.Clusters, func(extra ...action.Resource) trial.Kinds { return kube.Builtin(extra...) })
	for _, c := range cases {
		if _, problem := world.Test(t.Context(), c); problem != "" {
			t.Errorf("%s:%d: case %s: %s", c.File, c.Line, c.Name, problem)
		}
	}
}

// known is what rules may name under a configuration, as the server has it.
func known(c *configs.Config) policy.Known {
	known := policy.Known{Approvers: c.ApproverSets(), Tools: map[string][]action.Scope{}, Resources: kube.Builtin().Names()}
	for _, cluster := range c.Clusters {
		known.Clusters = append(known.Clusters, cluster.Name)
	}
	for _, tool := range tools.All(known.Clusters) {
		known.Tools[tool.Name] = tool.Scopes
	}
	return known
}

func example(t *testing.T) *configs.Config {
	t.Helper()
	c, err := configs.Load("example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func matching(t *testing.T, glob string) []string {
	t.Helper()
	names, err := filepath.Glob(glob)
	if err != nil || len(names) == 0 {
		t.Fatalf("no %s: %v", glob, err)
	}
	return names
}
