package replay

import (
	"strings"

	"countersign/action"
	"countersign/audit"
)

// Difference is one field that is not as on record. A value that is not there is nil.
type Difference struct {
	Path     string `json:"path"` // JSON Pointer
	Recorded any    `json:"recorded,omitempty"`
	Sandbox  any    `json:"sandbox,omitempty"`
}

// maxDifferences bounds how many are listed of one object.
const maxDifferences = 100

// compare lists where an object of the sandbox differs from a recorded, and so masked, one.
func compare(recorded, got map[string]any) []Difference {
	masked, _ := audit.Mask(got).(map[string]any)
	var out []Difference
	for _, c := range action.Diff(portable(recorded), portable(masked)) {
		if c.Op == "replace" && same(c.Old, c.New) {
			continue
		}
		if len(out) == maxDifferences {
			break
		}
		out = append(out, Difference{Path: c.Path, Recorded: c.Old, Sandbox: c.New})
	}
	return out
}

// assigned are annotations that controllers write, which take their time.
var assigned = []string{"deployment.kubernetes.io/revision", "pv.kubernetes.io/", "volume.kubernetes.io/", "volume.beta.kubernetes.io/", lastApplied}

// lastApplied repeats a whole object in a text, and is masked whole.
const lastApplied = "kubectl.kubernetes.io/last-applied-configuration"

// portable is what of an object is to be the same in the sandbox.
func portable(object map[string]any) map[string]any {
	object = action.Portable(object)
	if meta, ok := object["metadata"].(map[string]any); ok {
		for _, field := range []string{"selfLink", "deletionTimestamp", "deletionGracePeriodSeconds"} {
			delete(meta, field)
		}
		owners, _ := meta["ownerReferences"].([]any)
		for _, owner := range owners {
			if owner, ok := owner.(map[string]any); ok {
				delete(owner, "uid")
			}
		}
		if annotations, ok := meta["annotations"].(map[string]any); ok {
			for key := range annotations {
				for _, prefix := range assigned {
					if strings.HasPrefix(key, prefix) {
						delete(annotations, key)
					}
				}
			}
			if len(annotations) == 0 {
				delete(meta, "annotations")
			}
		}
	}
	if spec, ok := object["spec"].(map[string]any); ok {
		switch object["kind"] {
		case "PersistentVolumeClaim":
			delete(spec, "volumeName")
		case "Pod":
			delete(spec, "nodeName")
		}
	}
	return object
}

// same reports whether two values are equal as far as masking lets that be told.
func same(recorded, got any) bool {
	a, isText := recorded.(string)
	b, both := got.(string)
	if !isText || !both {
		x, isNumber := number(recorded)
		y, both := number(got)
		return isNumber && both && x == y
	}
	b = strings.ReplaceAll(b, standIn, audit.Masked)
	return strings.Contains(a, audit.Masked) && (matches(a, b) || strings.Contains(b, audit.Masked) && matches(b, a))
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// matches reports whether a text is like a masked one, whatever was masked.
func matches(masked, text string) bool {
	parts := strings.Split(masked, audit.Masked)
	if !strings.HasPrefix(text, parts[0]) {
		return false
	}
	text = text[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text = text[i+len(part):]
	}
	return strings.HasSuffix(text, last)
}

// original is what an object on record is made anew from. What belongs to its first
// cluster alone is left out: owners are others there, or none.
func original(state map[string]any) map[string]any {
	object := portable(state)
	meta, _ := object["metadata"].(map[string]any)
	delete(meta, "ownerReferences")
	spec, _ := object["spec"].(map[string]any)
	switch object["kind"] {
	case "Job":
		if spec["manualSelector"] != true {
			delete(spec, "selector")
		}
	case "Pod":
		withoutTokens(spec)
	}
	return object
}

// withoutTokens takes out of a pod what the API server mounts into each.
func withoutTokens(spec map[string]any) {
	drop := func(in map[string]any, field string) {
		list, _ := in[field].([]any)
		var kept []any
		for _, item := range list {
			named, _ := item.(map[string]any)
			if name, _ := named["name"].(string); !strings.HasPrefix(name, "kube-api-access-") {
				kept = append(kept, item)
			}
		}
		if delete(in, field); kept != nil {
			in[field] = kept
		}
	}
	drop(spec, "volumes")
	for _, field := range []string{"containers", "initContainers"} {
		containers, _ := spec[field].([]any)
		for _, c := range containers {
			if c, ok := c.(map[string]any); ok {
				drop(c, "volumeMounts")
			}
		}
	}
}
