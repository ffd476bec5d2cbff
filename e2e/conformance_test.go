package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// conformance runs MCP's own suite in the versions that are published, for both eras.
// What fails, and why, stands in testdata/clients/conformance.txt; nothing else may,
// and what stands there must.
func conformance(t *testing.T, n *node, endpoint string) {
	expected := expectedFailures(t)
	unseen := maps.Clone(expected)
	for _, row := range [][]string{
		{"conformance-0.1"},
		{"conformance-0.2", "--requirements", "2025-11-25", "--timeout", "120000"}, // in ms, for a busy machine
		{"conformance-0.2", "--requirements", "2026-07-28", "--timeout", "120000"},
	} {
		t.Run(strings.Join(row, " "), func(t *testing.T) {
			dir := t.TempDir()
			script := filepath.Join(n.modules, row[0], "dist/index.js")
			// Its exit code says that something failed, which is always so.
			out, err := n.run(t, script, append([]string{"server", "--url", endpoint, "-o", dir}, row[1:]...)...)
			var passed []string
			for scenario, checks := range verdicts(t, dir, out, err) {
				bad := slices.Sorted(maps.Keys(checks))
				want, listed := expected[scenario]
				delete(unseen, scenario)
				switch {
				case len(bad) == 0 && listed:
					t.Errorf("%s passes, and is listed as one that fails", scenario)
				case len(bad) > 0 && !listed, len(want) > 0 && !slices.Equal(bad, want):
					t.Errorf("%s fails in %v; listed %v", scenario, checks, want)
				}
				if len(bad) == 0 {
					passed = append(passed, scenario)
				}
			}
			slices.Sort(passed)
			t.Logf("%d scenarios pass: %s", len(passed), strings.Join(passed, ", "))
		})
	}
	for scenario := range unseen {
		t.Errorf("%s is listed, and no suite has it", scenario)
	}
}

// wireSchema is the check of every message that a scenario has seen.
const wireSchema = "wire-schema-valid"

// verdicts are the checks that failed or warned in each scenario that ran, and why. One
// in which nothing succeeded either has not passed.
func verdicts(t *testing.T, dir, out string, ran error) map[string]map[string]string {
	t.Helper()
	results, err := filepath.Glob(filepath.Join(dir, "*", "checks.json"))
	if err != nil {
		t.Fatal(err)
	}
	if len(results) == 0 || !strings.Contains(out, fmt.Sprintf("(%d scenarios)", len(results))) {
		t.Fatalf("%d scenarios have results: %v\n%s", len(results), ran, out)
	}
	all := map[string]map[string]string{}
	for _, path := range results {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var checks []struct{ ID, Status, ErrorMessage string }
		if err := json.Unmarshal(text, &checks); err != nil {
			t.Fatal(err)
		}
		bad := map[string]string{}
		succeeded := false
		for _, c := range checks {
			switch {
			case c.Status == "SUCCESS":
				succeeded = succeeded || c.ID != wireSchema
			case c.Status != "FAILURE" && c.Status != "WARNING":
			case c.ID == wireSchema:
				t.Errorf("%s: %s", path, c.ErrorMessage)
			default:
				bad[c.ID] = c.ErrorMessage
			}
		}
		if len(bad) == 0 && !succeeded {
			bad["none"] = "nothing was checked"
		}
		all[resultFolder.FindStringSubmatch(filepath.Base(filepath.Dir(path)))[1]] = bad
	}
	return all
}

var resultFolder = regexp.MustCompile(`^server-(.+)-\d{4}-\d\d-\d\dT[\d-]+Z$`)

// expectedFailures are the scenarios of the list, each with the checks that fail, if
// it says which.
func expectedFailures(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("testdata/clients/conformance.txt")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) > 0 && !strings.HasPrefix(line, "#") && fields[0] != "cause:" {
			slices.Sort(fields[1:])
			all[fields[0]] = fields[1:]
		}
	}
	return all
}
