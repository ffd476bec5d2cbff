package tools

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation"
)

func TestCronJobsRefused(t *testing.T) {
	refused(t, []refusal{
		{name: "no name", tool: "trigger_cronjob", args: `{"namespace":"shop","name":""}`, want: "name is empty"},
		{name: "no namespace", tool: "suspend_cronjob", args: `{"name":"report"}`, want: "argument namespace is missing"},
		{name: "a namespace that is none", tool: "resume_cronjob", args: `{"namespace":"a/b","name":"report"}`, want: `namespace "a/b": `},
	})
}

// The name of a Job is made up by the API server and must become a label.
func TestManualPrefix(t *testing.T) {
	for name, want := range map[string]string{
		"report":                       "report-manual-",
		strings.Repeat("a", 50):        strings.Repeat("a", 50) + "-manual-",
		strings.Repeat("a", 52):        strings.Repeat("a", 50) + "-manual-",
		strings.Repeat("a", 49) + ".b": strings.Repeat("a", 49) + "-manual-",
		strings.Repeat("a", 49) + "-b": strings.Repeat("a", 49) + "-manual-",
	} {
		got := manualPrefix(name)
		if got != want || len(validation.IsDNS1123Subdomain(got+"abcde")) > 0 || len(got) > 58 {
			t.Errorf("%s: %s; want %s", name, got, want)
		}
	}
}

// As kubectl does it, the template's annotations come last.
func TestManualJobAnnotations(t *testing.T) {
	job, err := manualJob([]byte(`{"metadata":{"name":"a","uid":"u"},"spec":{"jobTemplate":{"metadata":{"annotations":{"cronjob.kubernetes.io/instantiate":"other"}},"spec":{}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(job["metadata"].(map[string]any)["annotations"])
	if got != "map[cronjob.kubernetes.io/instantiate:other]" {
		t.Error(got)
	}
}
