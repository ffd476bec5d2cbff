package slacktest

import (
	"encoding/json"
	"net/http"
)

// control is the request of every act of the control API; each uses some fields.
type control struct {
	User    string            `json:"user"`
	Channel string            `json:"channel"`
	TS      string            `json:"ts"`
	Action  string            `json:"action"`
	View    string            `json:"view"`
	Values  map[string]string `json:"values"`
	Text    string            `json:"text"`
	Method  string            `json:"method"`
	Times   int               `json:"times"`
	How     Trouble           `json:"how"`
	Down    bool              `json:"down"`
	Group   string            `json:"group"`
	Members []string          `json:"members"`
	Person  *User             `json:"person"`
	Place   *Channel          `json:"place"`
	URL     string            `json:"url"`
}

// serveControl lets a script do what a test does: it POSTs JSON to
// /control/<act>. It answers 200 with what the method of that name returns, or 400
// with the error as text.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	var c control
	if r.Method == http.MethodPost {
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&c); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	var out any = answer{"ok": true}
	var err error
	switch r.PathValue("act") {
	case "identity":
		out = answer{"url": s.URL, "team_id": s.TeamID, "app_id": s.AppID, "bot_user_id": s.BotUserID, "bot_id": s.BotID,
			"bot_token": s.BotToken, "app_token": s.AppToken, "signing_secret": s.SigningSecret, "connections": s.Connections()}
	case "click":
		out, err = s.Click(c.User, c.Channel, c.TS, c.Action)
	case "view_click":
		out, err = s.ViewClick(c.User, c.View, c.Action)
	case "submit":
		out, err = s.Submit(c.User, c.View, c.Values)
	case "dismiss":
		out, err = s.Dismiss(c.User, c.View)
	case "post":
		out = s.Post(c.User, c.Channel, c.TS, c.Text)
	case "messages":
		out = withText(s.Messages(c.Channel))
	case "dms":
		out = withText(s.DMs(c.User))
	case "ephemerals":
		out = s.Ephemerals(c.Channel, c.User)
	case "view":
		if v, ok := s.View(c.User); ok {
			out = answer{"view": v, "rendered": v.Rendered()}
		}
	case "calls":
		out = s.Calls(c.Method)
	case "fail":
		s.Fail(c.Method, c.Times, c.How)
	case "mend":
		s.Mend()
	case "down":
		s.Down(c.Down)
	case "disconnect":
		s.Disconnect(c.Text)
	case "interactions":
		s.SetInteractions(c.URL)
	case "group":
		s.SetGroup(c.Group, c.Members...)
	case "person":
		if c.Person != nil {
			s.AddUser(*c.Person)
		}
	case "place":
		if c.Place != nil {
			s.AddChannel(*c.Place)
		}
	default:
		http.NotFound(w, r)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reply(w, out)
}

type shown struct {
	Message
	Rendered string `json:"rendered"`
}

func withText(messages []Message) []shown {
	out := []shown{}
	for _, m := range messages {
		out = append(out, shown{m, m.Rendered()})
	}
	return out
}
