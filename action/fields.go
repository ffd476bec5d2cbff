package action

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// maxFields bounds the pointers that Fields writes, in bytes. A body of the
// largest size that is taken stays below it unless it is made to go beyond:
// deep within one another, few names make endless pointers.
const maxFields = 4 << 20

// Fields lists the fields that the request's body itself names, as JSON
// Pointers (RFC 6901), sorted and each once. It needs no cluster, and so it
// can be asked before anything is sent.
//
// Every field that the body changes is one of them, lies below one of them, or
// holds one of them. A list is one field. What a request does without naming
// it is not here: an apply takes away what the same manager set before and now
// leaves out, and defaults and webhooks add what they like.
//
// "" is the whole object. A deletion is about it, and so is a body that is not
// understood or names too much to list.
func (a Action) Fields() []string {
	if a.ReadOnly() || a.Subresource == Exec { // a command names no field
		return nil
	}
	f := fields{strategic: a.Options.PatchType == StrategicMergePatch, left: maxFields}
	if !f.body(a) || f.left < 0 {
		return []string{""}
	}
	slices.Sort(f.found)
	return slices.Compact(f.found)
}

type fields struct {
	found     []string
	strategic bool
	left      int // bytes that may still be looked at; below 0 it is too much
}

// body reports whether it understood the request.
func (f *fields) body(a Action) bool {
	switch a.Options.PatchType {
	case JSONPatch:
		return a.Verb == Patch && f.operations(a.Body)
	case ApplyPatch, MergePatch, StrategicMergePatch:
		if a.Verb != Patch {
			return false
		}
	default:
		if a.Verb != Create {
			return false
		}
	}
	object, ok := a.Body.(map[string]any)
	f.value("", object)
	return ok
}

func (f *fields) name(path string) {
	if f.left -= len(path) + 1; f.left >= 0 {
		f.found = append(f.found, path)
	}
}

// The directives of a strategic merge patch that are about one list beside them.
const (
	setElementOrder         = "$setElementOrder"
	deleteFromPrimitiveList = "$deleteFromPrimitiveList"
)

// value names the leaves of a value at a path.
func (f *fields) value(path string, v any) {
	object, ok := v.(map[string]any)
	if !ok || len(object) == 0 {
		f.name(path)
		return
	}
	for key, v := range object {
		if f.left -= len(path) + len(key) + 1; f.left < 0 {
			return
		}
		if !f.strategic || !strings.HasPrefix(key, "$") {
			f.value(path+"/"+EscapePointer(key), v)
			continue
		}
		directive, field, _ := strings.Cut(key, "/")
		if field != "" {
			f.name(path + "/" + EscapePointer(field))
		}
		if field == "" || directive != setElementOrder && directive != deleteFromPrimitiveList {
			f.name(path) // $patch and $retainKeys take away what stands beside them
		}
	}
}

// operations names what the operations of a JSON Patch (RFC 6902) write to.
func (f *fields) operations(body any) bool {
	list, ok := body.([]any)
	for _, item := range list {
		op, _ := item.(map[string]any)
		path, isText := op["path"].(string)
		if !isText || !ValidPointer(path) {
			return false
		}
		switch op["op"] {
		case "test":
		case "replace":
			f.pointer(path, false)
			f.below(path, op["value"])
		case "add":
			f.pointer(path, true)
			f.below(path, op["value"])
		case "remove", "copy":
			f.pointer(path, true)
		case "move":
			from, isText := op["from"].(string)
			if !isText || !ValidPointer(from) {
				return false
			}
			f.pointer(path, true)
			f.pointer(from, true)
		default:
			return false
		}
	}
	return ok
}

func (f *fields) below(path string, v any) {
	if _, ok := v.(map[string]any); ok {
		f.value(path, v)
	}
}

// pointer names the target of an operation, and with it the list that it goes
// into where other items are meant as well: an item that comes or goes moves
// those behind it, and "-" or an index in an odd spelling, which the API server
// reads all the same, is of an item that has another pointer.
func (f *fields) pointer(path string, moves bool) {
	f.name(path)
	steps := strings.Split(path, "/")
	for i, step := range steps {
		n, err := strconv.Atoi(step)
		last := i == len(steps)-1
		if step == "-" || err == nil && (n < 0 || strconv.Itoa(n) != step || last && moves) {
			f.name(strings.Join(steps[:i], "/"))
			return
		}
	}
}

var pointer = regexp.MustCompile(`^(/([^/~]|~[01])*)*$`)

// ValidPointer reports whether a text is a JSON Pointer. The API server is less
// strict: it takes "x/status" for "/status".
func ValidPointer(text string) bool { return pointer.MatchString(text) }
