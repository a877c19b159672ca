"""Word lists behind the slots, and the Chinese characters that the tokenizer must cover."""

from __future__ import annotations


def common_characters() -> list[str]:
    """The 3,755 level-1 characters of GB 2312 (rows 16 to 55), derived from the codec itself."""
    characters = []
    for row in range(0xB0, 0xD8):
        for cell in range(0xA1, 0xFF):
            try:
                characters.append(bytes((row, cell)).decode("gb2312"))
            except UnicodeDecodeError:  # the last row is not full
                continue
    return characters


_ZH_NOUNS = (
    "毛衣 衬衫 牛仔裤 连衣裙 羽绒服 外套 运动鞋 皮鞋 凉鞋 帽子 围巾 手套 袜子 皮带 钱包 背包 行李箱 手表 项链 "
    "手机 手机壳 充电器 充电宝 数据线 耳机 音箱 键盘 鼠标 显示器 平板电脑 笔记本电脑 打印机 路由器 摄像头 "
    "电饭锅 电热水壶 豆浆机 榨汁机 微波炉 烤箱 空气炸锅 吸尘器 加湿器 电风扇 空调 洗衣机 冰箱 吹风机 剃须刀 "
    "台灯 落地灯 床单 被子 枕头 窗帘 地毯 毛巾 浴巾 书架 书桌 椅子 沙发 床垫 衣柜 收纳盒 花瓶 相框 镜子 "
    "保温杯 水杯 茶具 咖啡杯 餐具 砂锅 炒锅 菜刀 砧板 饭盒 茶叶 咖啡豆 坚果 饼干 巧克力 蜂蜜 牛奶 大米 "
    "面膜 口红 洗面奶 护手霜 香水 洗发水 牙刷 牙膏 纸巾 雨伞 帐篷 睡袋 瑜伽垫 哑铃 跳绳 自行车 头盔 滑板 "
    "篮球 足球 羽毛球拍 钓鱼竿 吉他 钢琴 画笔 笔记本 钢笔 文具盒 积木 拼图 玩偶 婴儿车 奶瓶 尿不湿 猫粮 狗粮 "
    "鱼缸 工具箱 电钻 螺丝刀 梯子 门锁 净水器 投影仪 机器人 按摩椅 血压计 体重秤 游戏机 手柄 冲锋衣 睡衣 西装"
).split()
_ZH_ADJECTIVES = (
    "红色 黑色 白色 蓝色 儿童 男士 女士 便携 折叠 智能 无线 蓝牙 电动 迷你 大号 小号 复古 纯棉 真皮 不锈钢 陶瓷 "
    "玻璃 木质 防水 加厚 轻便 静音 家用 车载 户外 冬季 夏季 羊毛 机械 多功能 扫地 双肩 速干 自动 台式 手冲"
).split()
_ZH_CITIES = (
    "北京 上海 广州 深圳 杭州 南京 武汉 成都 重庆 西安 天津 苏州 长沙 郑州 青岛 大连 厦门 福州 合肥 济南 沈阳 "
    "长春 南宁 贵阳 兰州 银川 西宁 拉萨 乌鲁木齐 呼和浩特 海口 三亚 太原 石家庄 南昌 无锡 宁波 温州 佛山 东莞 "
    "珠海 桂林 洛阳 烟台 潍坊 徐州 扬州 绍兴 嘉兴 金华 泉州 台州 中山 惠州 汕头 襄阳 宜昌 岳阳 绵阳 大理 丽江"
).split()
_EN_NOUNS = (
    "sweater,shirt,jeans,dress,coat,jacket,sneakers,boots,sandals,hat,scarf,gloves,socks,belt,wallet,"
    "bag,suitcase,watch,necklace,phone,phone case,charger,power bank,cable,headphones,speaker,keyboard,"
    "mouse,monitor,tablet,laptop,printer,router,webcam,rice cooker,kettle,blender,juicer,microwave,oven,"
    "toaster,vacuum cleaner,humidifier,fan,heater,washing machine,fridge,hair dryer,razor,desk lamp,"
    "floor lamp,sheets,duvet,pillow,curtains,rug,towel,bookshelf,desk,chair,sofa,mattress,wardrobe,"
    "storage box,vase,photo frame,mirror,bottle,mug,teapot,cup,cutlery set,pan,pot,kitchen knife,"
    "lunch box,tea,coffee beans,nuts,cookies,chocolate,honey,face mask,lipstick,hand cream,perfume,"
    "shampoo,toothbrush,umbrella,tent,sleeping bag,yoga mat,dumbbells,skipping rope,bicycle,helmet,"
    "skateboard,basketball,football,racket,fishing rod,guitar,piano,notebook,pen,puzzle,doll,stroller,"
    "baby bottle,cat food,dog bed,fish tank,toolbox,drill,ladder,door lock,water filter,camera,drone,"
    "game console,controller,massage chair,scale,pyjamas,suit,raincoat,coffee grinder,shoes,bike,machine"
).split(",")
_EN_ADJECTIVES = (
    "red black white blue green kids portable folding smart wireless bluetooth electric mini large small "
    "vintage cotton leather steel ceramic glass wooden waterproof thick light silent outdoor winter "
    "summer wool gaming robot automatic running travel home car digital solar"
).split()
_EN_CITIES = (
    "London,Paris,Berlin,Madrid,Rome,Vienna,Dublin,Oslo,Lisbon,Prague,Boston,Chicago,Seattle,Dallas,"
    "New York,Los Angeles,San Diego,Miami,Denver,Sydney,Melbourne,Auckland,Tokyo,Seoul,Singapore,"
    "Manchester,Bristol,Glasgow,Cardiff,Munich,Hamburg,Lyon,Milan,Zurich,Geneva,Vancouver,Montreal,"
    "Ottawa,Perth,Austin,Portland,Houston,Phoenix,Delhi,Mumbai,Cairo,Nairobi,Lima,Oxford,York,Bath"
).split(",")

WORDS: dict[str, dict[str, list[str]]] = {
    "zh": {
        "nouns": _ZH_NOUNS,
        "adjectives": _ZH_ADJECTIVES,
        "cities": _ZH_CITIES,
        "company_ends": "科技有限公司 贸易有限公司 有限公司 文化传媒公司 商贸公司 集团".split(),
        "surnames": list("王李张刘陈杨赵黄周吴徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹"),
        "shop_ends": "小店 商城 旗舰店 优选 百货 生活馆 数码店 服饰".split(),
    },
    "en": {
        "nouns": _EN_NOUNS,
        "adjectives": _EN_ADJECTIVES,
        "cities": _EN_CITIES,
        "company_ends": ["Ltd", "Inc", "LLC", "GmbH", "Trading", "Group", "Consulting"],
        "names": (
            "Mia Tom Sara Ben Nora Max Emma Liam Olivia Noah Ava Jack Lucy Peter Maria David"
        ).split(),
        "shop_ends": ["Store", "Shop", "Market", "Goods", "Outlet", ""],
        "codes": (
            "SAVE SUMMER WINTER WELCOME NEW VIP SALE GIFT EXTRA LUCKY SHOP DEAL MEMBER FREE OFF "
            "AUTUMN HELLO CODE BONUS PARTY"
        ).split(),
        "mail_hosts": ["mail.com", "example.com", "post.net", "inbox.org", "163.com", "qq.com"],
    },
}
