package tools

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
)

func noneFound(a action.Action) string {
	where := ""
	if a.Namespace != "" {
		where = " in namespace " + a.Namespace + " (list_namespaces shows which there are)"
	}
	return "No " + a.Resource.GroupResource() + " found" + where + "."
}

// list is the table of what one list request has fetched, and says how much of all it is.
func (r *rows) list(a action.Action, fetched int, meta metav1.ListMeta) string {
	text, shown := r.table()
	if r.cut {
		text += fmt.Sprintf("Cells are cut at %d characters; get_resource shows one whole.\n", maxCell)
	}
	if shown < fetched {
		text += fmt.Sprintf("Cut at %d of the %d fetched: narrow with label_selector, field_selector or limit.\n", shown, fetched)
	}
	left := meta.RemainingItemCount
	if left != nil && *left > 0 && a.Options.Continue != "" { // how many came before is not known
		text += fmt.Sprintf("%d more shown, %d left.", shown, int64(fetched-shown)+*left)
	} else if left != nil && *left > 0 {
		text += fmt.Sprintf("%d of %d shown.", shown, int64(fetched)+*left)
	} else if meta.Continue != "" {
		text += fmt.Sprintf("%d shown, and there are more.", shown)
	}
	if meta.Continue != "" && shown == fetched { // else it would leave out the rows that were cut
		text += " Narrow with label_selector or field_selector, or go on with continue: " + meta.Continue + "\n"
	}
	return text
}

// cellText is a cell on one line; one without a value is empty, as in kubectl get.
func cellText(cell any) string {
	switch cell := cell.(type) {
	case nil:
		return ""
	case string:
		return cellLine(cell)
	}
	return cellLine(fmt.Sprint(cell))
}

// cellLine puts the text of a cell on one line, and bounds it.
func cellLine(text string) string {
	for i := range len(text) { // nearly every cell is one line, with single spaces
		if c := text[i]; c < ' ' || c >= utf8.RuneSelf || c == ' ' && (i == 0 || i == len(text)-1 || text[i-1] == ' ') {
			text = strings.Join(strings.Fields(text), " ")
			break
		}
	}
	if utf8.RuneCountInString(text) > maxCell {
		text = audit.MaskText(text) // what a cut leaves of a secret is not known for one
	}
	if utf8.RuneCountInString(text) > maxCell {
		text = string([]rune(text)[:maxCell]) + "..." // every row is padded to the widest
	}
	return text
}

// likeASecret is what is masked under a name that says so, and nowhere else.
const likeASecret = "h8Gq2Lw0Zk3x9VtR"

// maxCell bounds one cell of a table, in characters.
const maxCell = 120

// renderList writes a table: the API server's own, or one of the fields asked for.
func renderList(responses []Response) (string, error) {
	r := responses[0]
	if r.Action.Options.Fields == nil {
		return renderTable(responses)
	}
	if r.Omitted > 0 {
		return "", BadArgument("the objects are %d bytes together, more than the %d that are read for fields: give a smaller limit", int64(len(r.Body))+r.Omitted, maxFetched)
	}
	var list struct {
		Metadata metav1.ListMeta  `json:"metadata"`
		Items    []map[string]any `json:"items"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &list); err != nil {
		return "", fmt.Errorf("reading the list: %w", err)
	}
	columns, err := parseFields(r.Action.Options.Fields)
	if err != nil {
		return "", err
	}
	if len(list.Items) == 0 {
		return noneFound(r.Action), nil
	}
	head := []string{"NAME"}
	for _, column := range columns {
		head = append(head, column.path)
	}
	namespaces := r.Action.Resource.Namespaced && r.Action.Namespace == ""
	if namespaces {
		head = slices.Insert(head, 0, "NAMESPACE")
	}
	var rows rows
	rows.add(head)
	found := make([]bool, len(columns))
	for _, object := range list.Items {
		// Masked before anything is selected: no path leads past it.
		object = audit.MaskObject(object, isSecret(r.Action))
		meta, _ := object["metadata"].(map[string]any)
		cells := []string{cellText(meta["name"])}
		for i, column := range columns {
			value, err := column.of(object)
			if err != nil {
				return "", err
			}
			found[i] = found[i] || value != nil
			cells = append(cells, fieldText(value))
		}
		if namespaces {
			cells = slices.Insert(cells, 0, cellText(meta["namespace"]))
		}
		if !rows.add(cells) {
			break
		}
	}
	text := rows.list(r.Action, len(list.Items), list.Metadata)
	for i, column := range columns {
		if !found[i] { // which is more often a slip in the path than a fact
			text = strings.TrimSuffix(text, "\n") + fmt.Sprintf("\nNo object shown has %s.\n", column.path)
		}
	}
	return text, nil
}

func isSecret(a action.Action) bool { return a.Resource.GroupResource() == "secrets" }

// renderObject writes one object as YAML, with secret values masked and without
// what nobody reads.
func renderObject(responses []Response) (string, error) {
	var object map[string]any
	if err := kjson.UnmarshalCaseSensitivePreserveInts(responses[0].Body, &object); err != nil {
		return "", fmt.Errorf("reading the object: %w", err)
	}
	if meta, ok := object["metadata"].(map[string]any); ok {
		delete(meta, "managedFields")
		if annotations, ok := meta["annotations"].(map[string]any); ok {
			delete(annotations, "kubectl.kubernetes.io/last-applied-configuration")
			if len(annotations) == 0 {
				delete(meta, "annotations")
			}
		}
	}
	object = audit.MaskObject(object, isSecret(responses[0].Action))
	paths := responses[0].Action.Options.Fields
	if paths == nil {
		text, err := yamlText(object)
		if len(text) > maxBytes {
			text = cutEnd(text, "name what you need in fields, such as metadata.labels") + sizes(object)
		}
		return text, err
	}
	selected, err := parseFields(paths)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, f := range selected {
		value, err := f.of(object)
		if err != nil {
			return "", err
		}
		text, err := yamlText(map[string]any{f.path: value})
		if err != nil {
			return "", err
		}
		left := maxBytes - b.Len()
		switch {
		case len(text) <= left:
			b.WriteString(text)
			continue
		case left <= 0:
			fmt.Fprintf(&b, "(%s is %d bytes and not shown: name less in fields)\n", f.path, len(text))
			continue
		}
		fmt.Fprintf(&b, "%s\n(%s is %d bytes; the first %d are shown)\n", strings.ToValidUTF8(text[:left], ""), f.path, len(text), left)
		if keys, ok := value.(map[string]any); ok {
			b.WriteString(sizes(keys))
		}
	}
	return b.String(), nil
}

// maxSizes bounds how many keys of a map are told by their size.
const maxSizes = 20

// sizes says which keys make a map large, the largest first.
func sizes(object map[string]any) string {
	size := map[string]int{}
	for key, value := range object {
		text, _ := yamlText(value) // what does not become YAML has been told before
		size[key] = len(text)
	}
	keys := slices.SortedFunc(maps.Keys(size), func(a, b string) int {
		return cmp.Or(cmp.Compare(size[b], size[a]), strings.Compare(a, b))
	})
	text := "(bytes by key: "
	for i, key := range keys[:min(len(keys), maxSizes)] {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s %d", cellText(key), size[key])
	}
	if more := len(keys) - maxSizes; more > 0 {
		text += fmt.Sprintf(", and %d more", more)
	}
	return text + ")\n"
}

func yamlText(value any) (string, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(value); err != nil {
		return "", fmt.Errorf("writing YAML: %w", err)
	}
	return b.String(), nil
}

// cutEnd bounds a text and says what was left out.
func cutEnd(text, how string) string { return cutAt(text, maxBytes, how) }

func cutAt(text string, most int, how string) string {
	if len(text) <= most {
		return text
	}
	end := most
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return fmt.Sprintf("%s\n(the first %d of %d bytes; to see less: %s)\n", text[:end], end, len(text), how)
}

// renderChange says in one line an Action what became of the object.
func renderChange(verb string) func([]Response) (string, error) {
	return func(responses []Response) (string, error) {
		lines := make([]string, len(responses))
		for i, r := range responses {
			target := r.Action.Name
			if target == "" { // the API server has made it up
				var created metav1.PartialObjectMetadata
				if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &created); err != nil {
					return "", fmt.Errorf("reading the created object: %w", err)
				}
				target = created.Name
			}
			if r.Action.Namespace != "" {
				target = r.Action.Namespace + "/" + target
			}
			lines[i] = fmt.Sprintf("%s %s %s", r.Action.Resource.GroupResource(), target, verb)
			if r.Action.Subresource == "scale" {
				var scale struct {
					Spec struct {
						Replicas int64 `json:"replicas"`
					} `json:"spec"`
				}
				if err := kjson.UnmarshalCaseSensitivePreserveInts(r.Body, &scale); err != nil {
					return "", fmt.Errorf("reading the scale: %w", err)
				}
				lines[i] += fmt.Sprintf(" to %d replicas", scale.Spec.Replicas)
			}
		}
		return strings.Join(lines, "\n"), nil
	}
}
