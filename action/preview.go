package action

import (
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Preview is what the API server itself says one Action would do: the live
// object and the result of the same request as a dry run.
type Preview struct {
	// Live is the object before, nil when there is none.
	Live map[string]any
	// Result is the object as it would be, nil when it would be gone.
	Result map[string]any
	// Diff is what differs between the two, without what every write changes.
	Diff []Change
}

// Change is one difference at one field. Path is a JSON Pointer (RFC 6901).
type Change struct {
	Op   string `json:"op"` // add, remove or replace, as in RFC 6902
	Path string `json:"path"`
	Old  any    `json:"old,omitempty"`
	New  any    `json:"new,omitempty"`
}

// NewPreview compares the live object with the dry run's result.
func NewPreview(live, result map[string]any) Preview {
	return Preview{Live: live, Result: result, Diff: Diff(live, result)}
}

// UID is the live object's identity: empty when there is none. An object that
// was deleted and made again under the same name has another.
func (p Preview) UID() string { return metadata(p.Live, "uid") }

// ResourceVersion is the live object's version, empty when there is none.
func (p Preview) ResourceVersion() string { return metadata(p.Live, "resourceVersion") }

func metadata(object map[string]any, field string) string {
	meta, _ := object["metadata"].(map[string]any)
	s, _ := meta[field].(string)
	return s
}

// PreviewDigest is what an approval is bound to beside the plan's digest: for
// every Action, which object it meets and what would change in it.
// The key is that of Plan.Digest.
func PreviewDigest(previews []Preview, key []byte) (string, error) {
	type bound struct {
		UID  string   `json:"uid"`
		Diff []Change `json:"diff"`
	}
	all := make([]bound, len(previews))
	for i, p := range previews {
		all[i] = bound{UID: p.UID(), Diff: p.Diff}
		if p.Live == nil && p.Result != nil {
			all[i].Diff = []Change{{Op: "add", New: withoutGenerated(withoutNoise(p.Result))}}
		}
	}
	return digest(key, "countersign.preview.v1", all)
}

// noise is what every write changes and nobody consents to or about: the
// bookkeeping of the API server and what controllers report.
var noise = map[string]bool{
	"/metadata/managedFields":     true,
	"/metadata/resourceVersion":   true,
	"/metadata/generation":        true,
	"/metadata/uid":               true,
	"/metadata/creationTimestamp": true,
	"/status":                     true,
}

// Diff lists the differences between two decoded JSON objects in path order.
// Lists are compared index by index. A missing object is one Change at the
// root: op "add" with the whole object, or "remove" with what was there.
func Diff(before, after map[string]any) []Change {
	switch {
	case before == nil && after == nil:
		return nil
	case before == nil:
		return []Change{{Op: "add", New: withoutNoise(after)}}
	case after == nil:
		return []Change{{Op: "remove", Old: withoutNoise(before)}}
	}
	return diffMaps(nil, "", before, after)
}

func diffMaps(changes []Change, path string, before, after map[string]any) []Change {
	keys := slices.Sorted(maps.Keys(before))
	for key := range after {
		if _, both := before[key]; !both {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		at := path + "/" + EscapePointer(key)
		if noise[at] {
			continue
		}
		old, had := before[key]
		now, has := after[key]
		changes = diffValues(changes, at, old, now, had, has)
	}
	return changes
}

func diffValues(changes []Change, path string, old, now any, had, has bool) []Change {
	switch {
	case !had:
		return append(changes, Change{Op: "add", Path: path, New: now})
	case !has:
		return append(changes, Change{Op: "remove", Path: path, Old: old})
	}
	if a, ok := old.(map[string]any); ok {
		if b, ok := now.(map[string]any); ok {
			return diffMaps(changes, path, a, b)
		}
	}
	if a, ok := old.([]any); ok {
		if b, ok := now.([]any); ok {
			return diffLists(changes, path, a, b)
		}
	}
	if !reflect.DeepEqual(old, now) {
		changes = append(changes, Change{Op: "replace", Path: path, Old: old, New: now})
	}
	return changes
}

func diffLists(changes []Change, path string, before, after []any) []Change {
	for i := range max(len(before), len(after)) {
		var old, now any
		if i < len(before) {
			old = before[i]
		}
		if i < len(after) {
			now = after[i]
		}
		changes = diffValues(changes, path+"/"+strconv.Itoa(i), old, now, i < len(before), i < len(after))
	}
	return changes
}

// ListNames says for each item of a list that a difference leads through, and
// that has a name in the object before or after, how its path reads with the name
// in the place of the number: "/spec/containers/0" is "/spec/containers[web]".
func (p Preview) ListNames() map[string]string {
	names := map[string]string{}
	for _, c := range p.Diff {
		var live, result any = p.Live, p.Result
		path, named := "", ""
		for segment := range strings.SplitSeq(strings.TrimPrefix(c.Path, "/"), "/") {
			key := unescapePointer.Replace(segment)
			list := false
			if list, result = step(result, key); !list {
				list, live = step(live, key)
			} else {
				_, live = step(live, key)
			}
			path += "/" + segment
			name := nameOf(result)
			if before := nameOf(live); name == "" || before != "" && before != name {
				name = before // also of an item that takes another's place: it is no change of either
				if after := nameOf(result); after != "" && before != after {
					name = before + ">" + after
				}
			}
			if list && name != "" {
				named += "[" + name + "]"
				names[path] = named
			} else {
				named += "/" + segment
			}
		}
	}
	return names
}

// step goes one level down, and says whether that was into a list.
func step(v any, key string) (list bool, next any) {
	switch v := v.(type) {
	case map[string]any:
		return false, v[key]
	case []any:
		if i, err := strconv.Atoi(key); err == nil && i >= 0 && i < len(v) {
			return true, v[i]
		}
		return true, nil
	}
	return false, nil
}

func nameOf(v any) string {
	object, _ := v.(map[string]any)
	name, _ := object["name"].(string)
	return name
}

var unescapePointer = strings.NewReplacer("~1", "/", "~0", "~")

// withoutNoise copies only the levels that it leaves something out of.
func withoutNoise(object map[string]any) map[string]any {
	out := maps.Clone(object)
	delete(out, "status")
	if meta, ok := out["metadata"].(map[string]any); ok {
		meta = maps.Clone(meta)
		for at := range noise {
			if field, ok := strings.CutPrefix(at, "/metadata/"); ok {
				delete(meta, field)
			}
		}
		out["metadata"] = meta
	}
	return out
}

// withoutGenerated copies a new object without what the API server makes up
// afresh for every request, dry run or not: two previews of the same creation
// would never agree otherwise. Nothing is lost by it: where the caller sets one
// of these fields itself, the plan's digest binds the value.
func withoutGenerated(object map[string]any) map[string]any {
	var generated string
	if meta, ok := object["metadata"].(map[string]any); ok && meta["generateName"] != nil {
		generated, _ = meta["name"].(string)
	}
	return withoutMadeUp(object, generated)
}

// Portable copies what of an object would be the same in another cluster: what is
// left of it without the API server's bookkeeping, what it makes up, and status.
func Portable(object map[string]any) map[string]any {
	return withoutMadeUp(withoutNoise(object), "")
}

func withoutMadeUp(object map[string]any, generated string) map[string]any {
	out, _ := stable(object, generated).(map[string]any)
	if out["kind"] == "Service" {
		if spec, ok := out["spec"].(map[string]any); ok {
			for _, field := range []string{"clusterIP", "clusterIPs", "healthCheckNodePort"} {
				delete(spec, field)
			}
			ports, _ := spec["ports"].([]any)
			for _, port := range ports {
				if port, ok := port.(map[string]any); ok {
					delete(port, "nodePort")
				}
			}
		}
	}
	return out
}

// tokenVolume is the name that the ServiceAccount admission plugin gives to the
// volume it adds to a pod: the prefix and five random characters.
const tokenVolume = "kube-api-access-"

// stable copies a value without what is made up in it. generated is the
// object's own name where that is, empty otherwise: it can stand elsewhere too,
// such as in the labels of a Job's pods.
func stable(v any, generated string) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			if key == "controller-uid" || key == "batch.kubernetes.io/controller-uid" {
				continue // a Job's own UID, in its labels and selector
			}
			out[key] = stable(value, generated)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, value := range v {
			out[i] = stable(value, generated)
		}
		return out
	case string:
		if v == generated {
			return ""
		}
		if strings.HasPrefix(v, tokenVolume) && len(v) == len(tokenVolume)+5 {
			return tokenVolume
		}
	}
	return v
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

// EscapePointer makes a key part of a JSON Pointer (RFC 6901).
func EscapePointer(key string) string { return pointerEscaper.Replace(key) }
