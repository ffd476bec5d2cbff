package configs_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/fstest"

	"countersign/configs"
	"countersign/policy"
	"countersign/trial"
)

var (
	block = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	kind  = regexp.MustCompile(`(?m)^kind: (\w+)$`)
)

// Every policy in docs/policy.md loads without a warning and is followed by
// tests, which hold.
func TestPolicyPage(t *testing.T) {
	data, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	known := known(example(t))
	var set *policy.Set
	var untested int // line of a policy that no test has followed yet
	for _, m := range block.FindAllStringSubmatchIndex(page, -1) {
		text, line := page[m[2]:m[3]], strings.Count(page[:m[2]], "\n")
		// The text keeps its line numbers, so that a mistake is found in the page.
		data := []byte(strings.Repeat("\n", line) + text)
		k := kind.FindStringSubmatch(text)
		switch {
		case k == nil:
			t.Errorf("line %d: a block of yaml that has no kind; what is not to load is a block of text", line)
		case k[1] == "Policy":
			if untested != 0 {
				t.Errorf("line %d: no test follows this policy", untested)
			}
			if set, err = policy.Load(fstest.MapFS{"policy.md.yaml": {Data: data}}, known); err != nil {
				t.Fatal(err)
			}
			for _, warning := range set.Warnings() {
				t.Error(warning)
			}
			untested = line
		case set == nil:
			t.Errorf("line %d: tests before any policy", line)
		default:
			cases, err := trial.Decode("policy.md", data)
			if err != nil {
				t.Fatal(err)
			}
			try(t, set, known, cases)
			untested = 0
		}
	}
	if set == nil || untested != 0 {
		t.Errorf("line %d: no test follows this policy", untested)
	}
}

// Every guard and every risk is explained in docs/policy.md.
func TestPolicyPageIsWhole(t *testing.T) {
	page, err := os.ReadFile("../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	guards, err := os.ReadFile("../policy/guards.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var words []string
	for _, m := range regexp.MustCompile(`(?m)- name: (guard:\S+)$`).FindAllStringSubmatch(string(guards), -1) {
		words = append(words, m[1])
	}
	if len(words) == 0 {
		t.Error("there is no guard any more")
	}
	words = append(words,
		policy.RiskReplicasToZero, policy.RiskImageChanged, policy.RiskPrivilegeGained, policy.RiskIdentityChanged,
		policy.RiskSelectorChanged, policy.RiskDataRemoved, policy.RiskDeleted, policy.RiskOwnership,
		policy.RiskForced, policy.RiskOrphaned, policy.RiskNoGrace)
	for _, word := range words {
		if !strings.Contains(string(page), "\n| `"+word+"` | ") {
			t.Errorf("%s has no row in docs/policy.md", word)
		}
	}
}

// Every key of the configuration has its place in the table of docs/design.md.
func TestConfigurationTableIsWhole(t *testing.T) {
	page, err := os.ReadFile("../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "\n| key | meaning | default |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	var walk func(of reflect.Type, group string)
	walk = func(of reflect.Type, group string) {
		for i := range of.NumField() {
			key, below := of.Field(i).Tag.Get("yaml"), of.Field(i).Type
			for below.Kind() == reflect.Pointer || below.Kind() == reflect.Slice || below.Kind() == reflect.Map {
				below = below.Elem()
			}
			if below.Kind() == reflect.Struct {
				walk(below, key)
				continue
			}
			row := regexp.MustCompile("(?m)^\\| `(.*\\b)?" + group + "\\b.*[`.]" + key + "[`:]")
			if group == "" {
				row = regexp.MustCompile("(?m)^\\| (`\\w+`, )?`" + key + "[`:]")
			}
			if !row.MatchString(table) {
				t.Errorf("%s %s has no place in the table", group, key)
			}
		}
	}
	walk(reflect.TypeFor[configs.Config](), "")
}
