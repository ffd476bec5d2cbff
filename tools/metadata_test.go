package tools

import (
	"fmt"
	"strings"
	"testing"
)

func TestMetadataRefused(t *testing.T) {
	args := func(rest string) string {
		return `{"kind":"cm","namespace":"shop","name":"settings"` + rest + `}`
	}
	var many []string
	for i := range 51 {
		many = append(many, fmt.Sprintf(`"k%d"`, i))
	}
	refused(t, []refusal{
		{name: "nothing", tool: "set_labels", args: args(""), want: "nothing to do: give set, remove or both"},
		{name: "nothing to set", tool: "set_labels", args: args(`,"set":{},"remove":[]`), want: "nothing to do: give set, remove or both"},
		{name: "both", tool: "set_labels", args: args(`,"set":{"a":"1","b":"2"},"remove":["b"]`), want: "b is in set and in remove: leave it in one of them"},
		{name: "a key that is none", tool: "set_labels", args: args(`,"set":{"a b":"1"}`), want: `label key "a b": name part must consist of alphanumeric characters`},
		{name: "an empty key", tool: "set_labels", args: args(`,"set":{"":"1"}`), want: `label key "": name part must be non-empty`},
		{name: "a key to remove that is none", tool: "set_labels", args: args(`,"remove":["a/b/c"]`), want: `label key "a/b/c": a valid label key must consist of`},
		{name: "a long value", tool: "set_labels", args: args(`,"set":{"a":"` + strings.Repeat("x", 64) + `"}`), want: "value of label a: must be no more than 63 "},
		{name: "a sentence", tool: "set_labels", args: args(`,"set":{"a":"two words"}`), want: "value of label a: a valid label must be an empty string or consist of"},
		{name: "a number", tool: "set_labels", args: args(`,"set":{"a":1}`), want: `argument set, "a" is a number where text is expected`},
		{name: "null", tool: "set_labels", args: args(`,"set":{"a":null}`), want: `argument set, "a" is null where text is expected`},
		{name: "a list", tool: "set_labels", args: args(`,"set":["a"]`), want: "argument set is a list where an object is expected"},
		{name: "text", tool: "set_labels", args: args(`,"remove":"a"`), want: "argument remove is text where a list is expected"},
		{name: "a list of numbers", tool: "set_labels", args: args(`,"remove":["a",2]`), want: "argument remove, item 2 is a number where text is expected"},
		{name: "too many", tool: "set_labels", args: args(`,"remove":[` + strings.Join(many, ",") + `]`), want: "argument remove has 51 items; 50 is the most that is taken"},
		{name: "too many to set", tool: "set_annotations", args: args(`,"set":{` + strings.Join(many, `:"",`) + `:""}`), want: "argument set has 51 items; 50 is the most that is taken"},
		{name: "large", tool: "set_annotations", args: args(`,"set":{"a":"` + strings.Repeat("x", 16<<10) + `"}`), want: "the keys and values are 16385 bytes; 16384 is the most that is taken: "},
		{name: "a key that is none", tool: "set_annotations", args: args(`,"set":{"a/":"1"}`), want: `annotation key "a/": name part must be non-empty`},
		{name: "what kubectl apply goes by", tool: "set_annotations", args: args(`,"set":{"kubectl.kubernetes.io/last-applied-configuration":"{}"}`),
			want: "kubectl.kubernetes.io/last-applied-configuration is what kubectl apply goes by: leave it out"},
		{name: "what kubectl apply goes by, removed", tool: "set_annotations", args: args(`,"remove":["kubectl.kubernetes.io/last-applied-configuration"]`),
			want: "kubectl.kubernetes.io/last-applied-configuration is what kubectl apply goes by: leave it out"},
		{name: "no such kind", tool: "set_labels", args: `{"kind":"gear","name":"a","set":{"a":"1"}}`, want: `cluster local serves no kind "gear"`},
		{name: "no namespace", tool: "set_labels", args: `{"kind":"cm","name":"a","set":{"a":"1"}}`, want: "configmaps live in namespaces: give namespace"},
		{name: "a namespace too many", tool: "set_labels", args: `{"kind":"node","namespace":"shop","name":"a","set":{"a":"1"}}`, want: "nodes do not live in namespaces: leave namespace out"},
	})
}
