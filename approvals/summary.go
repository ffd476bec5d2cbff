package approvals

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"countersign/action"
)

// Bounds of what a summary says, in lines and characters.
const (
	mostNotable = 10
	mostAlike   = 4 // of one name
	mostPath    = 80
	mostKeys    = 4  // of a path
	mostText    = 60 // one text within a value
	mostItems   = 6  // one list or object within a value
	mostLine    = 200
	mostRisks   = 500
)

// Summary is what nobody should overlook in a question, a line each: the risks,
// then the changed fields that give power or take service away, wherever in the
// differences they stand, the most dangerous first, then how much changes in
// all. Values are cut one by one, so that none hides another. The lines are
// fit to be shown (see [Visible]).
func Summary(op Operation) []string {
	var out []string
	if len(op.Risks) > 0 {
		out = append(out, cut(Visible("Risks: "+strings.Join(op.Risks, ", ")), mostRisks))
	}
	lines, total := notes(op)
	if total != "" {
		lines = append(lines, total)
	}
	return append(out, lines...)
}

// Outline is the whole change in few lines, at most so many and one that says
// how much more there is: a line for each request, or for each field where there
// is one request. Values are cut one by one.
func Outline(op Operation, most int) []string {
	all := len(op.Plan.Actions)
	var out []string
	if all == 1 {
		s := summary{outline: most}
		s.read(op)
		out, all = s.lines, s.fields+s.gone
	} else {
		for i, a := range op.Plan.Actions[:min(all, most)] {
			var s summary
			if i < len(op.Diffs) {
				s.read(Operation{Plan: action.Plan{Actions: []action.Action{a}}, Diffs: op.Diffs[i : i+1]})
			}
			out = append(out, cut(Visible(fmt.Sprintf("%d. %s, cluster %s%s: %s", i+1, a, a.Cluster, flags(a), s.total(1))), mostLine))
		}
	}
	if all > len(out) {
		out = append(out, fmt.Sprintf("and %d more", all-len(out)))
	}
	return out
}

// notes are the lines of a summary below the risks, and how much changes in all.
func notes(op Operation) (out []string, total string) {
	if len(op.Diffs) == 0 {
		return nil, ""
	}
	s := summary{several: len(op.Plan.Actions) > 1, seen: map[string]*note{}}
	s.read(op)
	slices.SortStableFunc(s.notes, func(a, b *note) int { return cmp.Compare(a.danger, b.danger) })
	var more []string // names that are not shown as often as they stand there
	alike, left := map[string]int{}, 0
	for _, n := range s.notes {
		alike[n.key]++
		if alike[n.key] > mostAlike || len(out) == mostNotable {
			if left += n.places; !slices.Contains(more, n.key) {
				more = append(more, n.key)
			}
			continue
		}
		line := n.line
		if n.places > 1 {
			line += fmt.Sprintf(" (and in %s)", count(n.places-1, "more place", "more places"))
		}
		out = append(out, line)
	}
	if left > 0 {
		if len(more) > mostItems {
			more = append(more[:mostItems], "others")
		}
		out = append(out, fmt.Sprintf("and %d more: %s", left, strings.Join(more, ", ")))
	}
	return out, s.total(len(op.Diffs))
}

// summary gathers what the differences of an operation hold.
type summary struct {
	several             bool
	outline             int      // how many lines to keep of any field
	lines               []string // the outline
	notes               []*note
	seen                map[string]*note
	fields              int
	objects, made, gone int

	label  string // of the object that is read, where there are several
	isNew  bool   // it is made, not changed
	schema bool   // it describes kinds, and names fields without having them
}

// note is one field that should not be overlooked.
type note struct {
	danger int
	key    string
	line   string
	places int
}

func (s *summary) read(op Operation) {
	for i, diff := range op.Diffs {
		if i >= len(op.Plan.Actions) {
			break
		}
		a := op.Plan.Actions[i]
		s.schema = a.Resource.GroupResource() == "customresourcedefinitions.apiextensions.k8s.io"
		if s.several {
			_, object, _ := strings.Cut(strings.TrimPrefix(a.String(), a.Verb+" "), " ")
			if a.Options.PatchType == action.ApplyPatch {
				_, object, _ = strings.Cut(strings.TrimPrefix(a.String(), "apply "), " ")
			}
			s.label = fmt.Sprintf("%d. %s ", i+1, cut(object, mostText))
		}
		if len(diff) > 0 {
			s.objects++
		}
		for _, c := range diff {
			s.change(c)
		}
	}
}

// total says how much changes in so many objects.
func (s *summary) total(of int) string {
	var parts []string
	if s.fields > 0 {
		text := count(s.fields, "field changes", "fields change")
		if of > 1 {
			text += " in " + count(s.objects, "object", "objects")
		}
		parts = append(parts, text)
	}
	if s.made > 0 {
		parts = append(parts, count(s.made, "object is new", "objects are new"))
	}
	if s.gone > 0 {
		parts = append(parts, count(s.gone, "object is removed", "objects are removed"))
	}
	if len(parts) == 0 {
		return "nothing would change"
	}
	if same := of - s.objects - s.gone; same > 0 {
		parts = append(parts, count(same, "object stays as it is", "objects stay as they are"))
	}
	return strings.Join(parts, ", ")
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// side says what becomes of a value.
type side int

const (
	added side = iota
	removed
	replaced
)

func (s *summary) change(c action.Change) {
	var keys []string
	for key := range strings.SplitSeq(strings.TrimPrefix(c.Path, "/"), "/") {
		keys = append(keys, unescape(key))
	}
	whole := c.Path == ""
	if whole {
		keys = nil
	}
	switch {
	case whole && c.Op == "remove":
		s.gone++
		s.objects--
		s.outlined("(the whole object)", "removed")
		if s.several && s.seen != nil {
			s.noted(dangerRights, "object", "(the whole object)", "removed")
		}
	case c.Op == "remove":
		s.walk(keys, c.Old, nil, removed, true)
	case c.Op == "add" || !scalar(c.Old) || !scalar(c.New):
		if s.isNew = whole; whole {
			s.made++
		}
		s.walk(keys, c.New, nil, added, true)
	default:
		s.walk(keys, c.New, c.Old, replaced, true)
	}
}

// walk visits a value and everything within it.
func (s *summary) walk(keys []string, v, old any, how side, top bool) {
	if s.seen != nil {
		if key, danger, shown := s.judge(keys, v, how, top); shown {
			s.noted(danger, key, pointer(keys), becomes(v, old, how))
		}
	}
	switch v := v.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			s.walk(append(slices.Clip(keys), key), v[key], nil, how, false)
		}
		if len(v) > 0 {
			return
		}
	case []any:
		for i, item := range v {
			s.walk(append(slices.Clip(keys), strconv.Itoa(i)), item, nil, how, false)
		}
		if len(v) > 0 {
			return
		}
	}
	s.fields++
	s.outlined(pointer(keys), becomes(v, old, how))
}

func (s *summary) outlined(path, what string) {
	if len(s.lines) < s.outline {
		s.lines = append(s.lines, s.text(path, what))
	}
}

func (s *summary) noted(danger int, key, path, what string) {
	same := key + "\n" + what
	if n := s.seen[same]; n != nil {
		n.places++
		n.danger = min(n.danger, danger)
		return
	}
	n := &note{danger: danger, key: key, line: s.text(path, what), places: 1}
	s.seen[same] = n
	s.notes = append(s.notes, n)
}

func (s *summary) text(path, what string) string {
	return cut(Visible(s.label+path+": "+what), mostLine)
}

// Dangers, the worst first.
const (
	dangerHost    = iota // reaches the node or everything
	dangerRights         // says who may do what
	dangerCode           // says what runs, and what it knows
	dangerService        // takes service away, or opens it
)

// notable are the names of fields that matter wherever they stand, in lower case:
// kinds that this server has never heard of hold pods and rules as well.
var notable = map[string]int{
	"privileged": dangerHost, "hostnetwork": dangerHost, "hostpid": dangerHost, "hostipc": dangerHost,
	"hostpath": dangerHost, "hostport": dangerHost, "hostprocess": dangerHost, "capabilities": dangerHost,
	"allowprivilegeescalation": dangerHost, "procmount": dangerHost, "runasuser": dangerHost,
	"runasgroup": dangerHost, "runasnonroot": dangerHost,

	"securitycontext": dangerRights, "seccompprofile": dangerRights, "apparmorprofile": dangerRights,
	"rules": dangerRights, "roleref": dangerRights, "subjects": dangerRights, "aggregationrule": dangerRights,
	"webhooks": dangerRights, "validations": dangerRights, "failurepolicy": dangerRights,
	"serviceaccountname": dangerRights, "serviceaccount": dangerRights, "automountserviceaccounttoken": dangerRights,

	"image": dangerCode, "command": dangerCode, "args": dangerCode,
	"envfrom": dangerCode, "secretkeyref": dangerCode,

	"replicas": dangerService, "selector": dangerService, "finalizers": dangerService, "ownerreferences": dangerService,
	"volumes": dangerService, "nodename": dangerService, "externalips": dangerService, "externalname": dangerService,
	"persistentvolumereclaimpolicy": dangerService, "suspend": dangerService, "type": dangerService,
}

// within is how far below its name a value is shown, where that is not at once:
// items of these say something only each by itself, fields of a securityContext
// only where they end.
var within = map[string]int{
	"rules": 1, "subjects": 1, "webhooks": 1, "validations": 1, "envfrom": 1, "volumes": 1, "ownerreferences": 1,
	"capabilities": 1, "securitycontext": 100,
}

// judge says under which notable name a value stands, how dangerous it is there,
// and whether it is to be shown. A change can begin below the level at which
// such a value is shown otherwise; top says that this one does.
func (s *summary) judge(keys []string, v any, how side, top bool) (key string, danger int, shown bool) {
	if s.schema && slices.Contains(keys, "openAPIV3Schema") {
		return "", 0, false
	}
	at := len(keys) - 1
	for ; at >= 0; at-- {
		name := strings.ToLower(keys[at])
		if strings.HasPrefix(name, "pod-security.kubernetes.io/") {
			return "pod-security", dangerRights, scalar(v)
		}
		if d, ok := notable[name]; ok {
			key, danger = name, d
			break
		}
	}
	if at < 0 {
		return "", 0, false
	}
	level, below := within[key], len(keys)-1-at
	switch {
	case below == level, below > level && top:
		shown = true
	case below < level:
		shown = scalar(v) && (below > 0 || key != "securitycontext")
	}
	if !shown || harmless(key, keys[len(keys)-1], v, how, s.isNew) {
		return "", 0, false
	}
	switch text := brieflyJSON(v); {
	case danger == dangerRights && (strings.Contains(text, `"*"`) || strings.Contains(text, "cluster-admin") || strings.Contains(text, "system:masters")):
		danger = dangerHost
	case key == "rules" && !strings.Contains(text, "verbs"), danger == dangerCode && how == removed:
		danger = dangerService // such as those of an Ingress
	}
	if key == "serviceaccount" {
		key = "serviceaccountname" // the API server sets both
	}
	return key, danger, true
}

// harmless reports whether a value under a notable name is one that gives no
// power and takes nothing away.
func harmless(key, last string, v any, how side, isNew bool) bool {
	text := fmt.Sprint(v)
	gone := how == removed
	switch key {
	case "privileged", "hostnetwork", "hostpid", "hostipc", "hostprocess", "allowprivilegeescalation", "automountserviceaccounttoken", "suspend":
		return text == strconv.FormatBool(gone)
	case "runasnonroot":
		return text == strconv.FormatBool(!gone)
	case "runasuser", "runasgroup":
		return text != "0" && !gone
	case "replicas":
		return text != "0" || gone
	case "hostport":
		return text == "0" || gone
	case "hostpath", "procmount", "externalips", "externalname", "envfrom", "secretkeyref", "nodename":
		return gone
	case "capabilities":
		return last == "drop" && how == added || last == "add" && gone
	case "seccompprofile", "apparmorprofile":
		return strings.Contains(text, "RuntimeDefault") && !gone
	case "failurepolicy":
		return text == "Fail" && !gone
	case "type":
		return gone || text != "LoadBalancer" && text != "NodePort" && text != "ExternalName"
	case "selector":
		return isNew
	case "volumes":
		source, _ := v.(map[string]any)
		for _, plain := range []string{"configMap", "emptyDir", "persistentVolumeClaim", "downwardAPI", "hostPath"} { // a hostPath is shown by itself
			if source[plain] != nil {
				return true
			}
		}
		return gone
	case "securitycontext":
		switch strings.ToLower(last) {
		case "readonlyrootfilesystem":
			return text == strconv.FormatBool(!gone)
		case "fsgroup", "fsgroupchangepolicy":
			return text != "0"
		}
	}
	return false
}

// scalar reports whether a value holds no others.
func scalar(v any) bool {
	switch v := v.(type) {
	case map[string]any:
		return len(v) == 0
	case []any:
		return len(v) == 0
	}
	return true
}

func becomes(v, old any, how side) string {
	switch how {
	case removed:
		return "removed, was " + brieflyJSON(v)
	case replaced:
		return brieflyJSON(old) + " -> " + brieflyJSON(v)
	}
	return brieflyJSON(v)
}

// brieflyJSON writes a value in a line, with every text and list within it cut by
// itself.
func brieflyJSON(v any) string {
	var b strings.Builder
	writeBriefly(&b, v, 0)
	return b.String()
}

func writeBriefly(b *strings.Builder, v any, depth int) {
	switch v := v.(type) {
	case string:
		short := cut(v, mostText)
		if short == v {
			writeJSON(b, v)
			return
		}
		text := []rune(v)
		writeJSON(b, string(text[:mostText]))
		fmt.Fprintf(b, "... (%d characters)", len(text))
	case map[string]any:
		if depth == 3 {
			fmt.Fprintf(b, "{%s}", count(len(v), "field", "fields"))
			return
		}
		b.WriteString("{")
		for i, key := range slices.Sorted(maps.Keys(v)) {
			if i > 0 {
				b.WriteString(", ")
			}
			if i == mostItems {
				fmt.Fprintf(b, "and %d more", len(v)-i)
				break
			}
			b.WriteString(cut(key, mostText) + ": ")
			writeBriefly(b, v[key], depth+1)
		}
		b.WriteString("}")
	case []any:
		if depth == 3 {
			fmt.Fprintf(b, "[%s]", count(len(v), "item", "items"))
			return
		}
		b.WriteString("[")
		for i, item := range v {
			if i > 0 {
				b.WriteString(", ")
			}
			if i == mostItems {
				fmt.Fprintf(b, "and %d more", len(v)-i)
				break
			}
			writeBriefly(b, item, depth+1)
		}
		b.WriteString("]")
	default:
		writeJSON(b, v)
	}
}

func writeJSON(b *strings.Builder, v any) {
	var buf strings.Builder
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		buf.WriteString("(unreadable)")
	}
	b.WriteString(strings.TrimSuffix(buf.String(), "\n"))
}

// cut shortens a text to so many characters and says how many there were.
func cut(s string, most int) string {
	n := utf8.RuneCountInString(s)
	if n <= most {
		return s
	}
	return fmt.Sprintf("%s... (%d characters)", string([]rune(s)[:most]), n)
}

// pointer writes the way to a value as a JSON Pointer, or the end of it, which says
// what it is: the whole stands in the differences.
func pointer(keys []string) string {
	path := ""
	if more := len(keys) - mostKeys; more > 1 {
		path, keys = "...", keys[more:]
	}
	for _, key := range keys {
		path += "/" + action.EscapePointer(key)
	}
	if text := []rune(path); len(text) > mostPath {
		return "..." + string(text[len(text)-mostPath:])
	}
	return path
}

var pointerUnescaper = strings.NewReplacer("~1", "/", "~0", "~")

func unescape(key string) string { return pointerUnescaper.Replace(key) }
