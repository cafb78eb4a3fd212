package ovsdb

import (
	"fmt"
	"reflect"

	"github.com/ovn-org/libovsdb/client"
	"github.com/ovn-org/libovsdb/model"
)

// database is the name of Open vSwitch's configuration database.
const database = "Open_vSwitch"

// Names of the tables that Weft reads or writes.
const (
	tableRoot      = "Open_vSwitch"
	tableBridge    = "Bridge"
	tablePort      = "Port"
	tableInterface = "Interface"
	tableFlowTable = "Flow_Table"
	tableMirror    = "Mirror"
	tableDatapath  = "Datapath"
	tableZone      = "CT_Zone"
	tableTimeouts  = "CT_Timeout_Policy"
)

// The rows below have exactly the columns that Weft uses. Only these are monitored, so frequently changing columns such
// as statistics are never sent.

type rootRow struct {
	UUID        string            `ovsdb:"_uuid"`
	Bridges     []string          `ovsdb:"bridges"`
	NextCfg     int               `ovsdb:"next_cfg"`
	CurCfg      int               `ovsdb:"cur_cfg"`
	OtherConfig map[string]string `ovsdb:"other_config"`
	Datapaths   map[string]string `ovsdb:"datapaths"` // by type
}

type bridgeRow struct {
	UUID         string            `ovsdb:"_uuid"`
	Name         string            `ovsdb:"name"`
	DatapathType string            `ovsdb:"datapath_type"`
	FailMode     *string           `ovsdb:"fail_mode"`
	Protocols    []string          `ovsdb:"protocols"`
	Controller   []string          `ovsdb:"controller"`
	STPEnable    bool              `ovsdb:"stp_enable"`
	RSTPEnable   bool              `ovsdb:"rstp_enable"`
	OtherConfig  map[string]string `ovsdb:"other_config"`
	ExternalIDs  map[string]string `ovsdb:"external_ids"`
	Ports        []string          `ovsdb:"ports"`
	FlowTables   map[int]string    `ovsdb:"flow_tables"`
	Mirrors      []string          `ovsdb:"mirrors"`
}

type portRow struct {
	UUID       string   `ovsdb:"_uuid"`
	Name       string   `ovsdb:"name"`
	Interfaces []string `ovsdb:"interfaces"`
}

type interfaceRow struct {
	UUID          string            `ovsdb:"_uuid"`
	Name          string            `ovsdb:"name"`
	Type          string            `ovsdb:"type"`
	Options       map[string]string `ovsdb:"options"`
	OFPort        *int              `ovsdb:"ofport"`
	OFPortRequest *int              `ovsdb:"ofport_request"`
	MAC           *string           `ovsdb:"mac"`
	MTURequest    *int              `ovsdb:"mtu_request"`
	Error         *string           `ovsdb:"error"`
	PolicingRate  int               `ovsdb:"ingress_policing_rate"`
	PolicingBurst int               `ovsdb:"ingress_policing_burst"`
	ExternalIDs   map[string]string `ovsdb:"external_ids"`
}

type mirrorRow struct {
	UUID string `ovsdb:"_uuid"`
	Name string `ovsdb:"name"`
}

type flowTableRow struct {
	UUID      string  `ovsdb:"_uuid"`
	Name      *string `ovsdb:"name"`
	FlowLimit *int    `ovsdb:"flow_limit"`
}

type datapathRow struct {
	UUID        string            `ovsdb:"_uuid"`
	CTZones     map[int]string    `ovsdb:"ct_zones"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

type zoneRow struct {
	UUID          string            `ovsdb:"_uuid"`
	TimeoutPolicy *string           `ovsdb:"timeout_policy"`
	ExternalIDs   map[string]string `ovsdb:"external_ids"`
}

type timeoutPolicyRow struct {
	UUID        string            `ovsdb:"_uuid"`
	Timeouts    map[string]int    `ovsdb:"timeouts"`
	ExternalIDs map[string]string `ovsdb:"external_ids"`
}

var models = map[string]model.Model{
	tableRoot:      &rootRow{},
	tableBridge:    &bridgeRow{},
	tablePort:      &portRow{},
	tableInterface: &interfaceRow{},
	tableFlowTable: &flowTableRow{},
	tableMirror:    &mirrorRow{},
	tableDatapath:  &datapathRow{},
	tableZone:      &zoneRow{},
	tableTimeouts:  &timeoutPolicyRow{},
}

// monitoredTables lists the columns of the rows above; by default libovsdb would monitor all columns of the schema.
func monitoredTables() []client.TableMonitor {
	var tables []client.TableMonitor
	for name, row := range models {
		t := client.TableMonitor{Table: name}
		for field := range reflect.TypeOf(row).Elem().Fields() {
			if column := field.Tag.Get("ovsdb"); column != "_uuid" {
				t.Fields = append(t.Fields, column)
			}
		}
		tables = append(tables, t)
	}
	return tables
}

func databaseModel() (model.ClientDBModel, error) {
	m, err := model.NewClientDBModel(database, models)
	if err != nil {
		return m, fmt.Errorf("describe the Open vSwitch database: %w", err)
	}
	return m, nil
}
